"""Random JSON schemas of all the kinds that answers can be held to, from a seed; and the few words they are made of."""

WORDS = ["name", "age", "city", "a b", 'say "hi"', "back\\slash", "naïve", "日本", "x", "xy", "id", "tags"]
PATTERNS = [
    "^[a-z]+$",
    r"^\d{3}-\d{4}$",
    "^(red|green|blue)$",
    r"[0-9]{2}",
    r'^"[^"]*"$',
    r"^\w+\\\w+$",
    "^(ab?c){1,3}$",
    r"^[A-Z]{2,5}(-[0-9]+)?$",
    "^a.c",
    "[.!?]$",
    "^(?=.*[0-9])[a-z0-9]{4,8}$",
]
A_AND_B = {"a": {"type": "integer"}, "b": {"type": "null"}}  # properties
FORMATS = ["date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "uri", "duration", "wine"]


def random_schema(rng, depth):
    """Return a random schema that has at least one value; `depth` bounds how deep objects and arrays go."""
    schema = _schema(rng, depth)
    if rng.random() < 0.15 and depth > 0:
        return _with_definitions(rng, schema)
    return schema


def _schema(rng, depth):
    simple = [_string, _string, _integer, _number, _enum, _const, _plain, _types]
    nested = [_object, _object, _object, _array, _array, _any_of, _one_of, _all_of, _tuple, _set, _map]
    schema = rng.choice(simple + nested * 2 if depth > 0 else simple)(rng, depth - 1)
    if rng.random() < 0.1:
        schema = dict(schema, title="A title", description="What it is", examples=[1], **{"$comment": "no rule"})
    return schema


def _string(rng, depth):
    kind = rng.randrange(5)
    if kind == 0:
        return {"type": "string"}
    if kind == 1:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    if kind == 2:
        return {"type": "string", "format": rng.choice(FORMATS)}
    if kind == 3:
        low, high = rng.randrange(4), rng.randrange(4, 20)
        return {"type": "string", "pattern": "^[a-z ]*$", "minLength": low, "maxLength": high}
    low = rng.randrange(5)
    return {"type": "string", "minLength": low, "maxLength": low + rng.choice([0, 1, 5, 30])}


def _integer(rng, depth):
    schema = {"type": "integer"}
    low = rng.randrange(-2000, 2000)
    if rng.random() < 0.6:
        schema[rng.choice(["minimum", "exclusiveMinimum"])] = low
    if rng.random() < 0.6:
        schema[rng.choice(["maximum", "exclusiveMaximum"])] = low + rng.choice([40, 300, 123456])
    if rng.random() < 0.3:
        schema["multipleOf"] = rng.choice([1, 2, 5, 7, 10])
    return schema


def _number(rng, depth):
    schema = {"type": "number"}
    low = rng.choice([0, -1, 0.5, -12.25, 3, 99.875])
    if rng.random() < 0.6:
        schema[rng.choice(["minimum", "exclusiveMinimum"])] = low
    if rng.random() < 0.6:
        schema[rng.choice(["maximum", "exclusiveMaximum"])] = low + rng.choice([0.5, 1, 10.75, 1000])
    if rng.random() < 0.2:
        schema["multipleOf"] = rng.choice([0.5, 0.25])
        schema.pop("exclusiveMaximum", None)
    return schema


def _value(rng):
    nested = [[1, [2]], {"k": ["v"]}, []]
    return rng.choice([None, True, False, 0, -7, 2.5, "", "yes", 'q"uote', "new\nline", "é"] + nested)


def _enum(rng, depth):
    return {"enum": [_value(rng) for _ in range(rng.randrange(1, 5))]}


def _const(rng, depth):
    return {"const": _value(rng)}


def _plain(rng, depth):
    return {"type": rng.choice(["null", "boolean", "string", "integer", "number"])}


def _types(rng, depth):
    return {"type": rng.sample(["null", "boolean", "string", "integer", "number"], rng.randrange(1, 4))}


def _object(rng, depth):
    names = rng.sample(WORDS, rng.randrange(0, 5))
    schema = {"type": "object", "properties": {name: _schema(rng, depth) for name in names}}
    schema["required"] = [name for name in names if rng.random() < 0.5]
    if rng.random() < 0.5:
        schema["additionalProperties"] = rng.choice([False, True, {"type": "integer"}])
    if rng.random() < 0.2:
        schema["patternProperties"] = {"^x_[a-z]+$": {"type": "boolean"}}
    if rng.random() < 0.2 and names:
        schema["minProperties"] = rng.randrange(1, len(names) + 1)
    if rng.random() < 0.2:
        schema["maxProperties"] = len(schema["required"]) + rng.randrange(1, 3)
        schema["minProperties"] = len(schema["required"])
    return schema


def _map(rng, depth):
    schema = {"type": "object", "additionalProperties": _schema(rng, depth)}
    if rng.random() < 0.5:
        schema["propertyNames"] = {"pattern": "^[a-z]{1,8}$"}
    if rng.random() < 0.5:
        schema["maxProperties"] = rng.randrange(1, 4)
    return schema


def _array(rng, depth):
    schema = {"type": "array", "items": _schema(rng, depth)}
    if rng.random() < 0.4:
        schema["minItems"] = rng.randrange(0, 3)
    if rng.random() < 0.6:
        schema["maxItems"] = rng.randrange(2, 5)
    return schema


def _tuple(rng, depth):
    schema = {"type": "array", "prefixItems": [_schema(rng, depth) for _ in range(rng.randrange(1, 4))]}
    if rng.random() < 0.5:
        schema["items"] = rng.choice([False, {"type": "integer"}])
    return schema


def _set(rng, depth):
    words = rng.sample(WORDS, rng.randrange(2, 6))
    return {"type": "array", "items": {"enum": words}, "uniqueItems": True, "minItems": rng.randrange(0, 3)}


def _any_of(rng, depth):
    return {"anyOf": [_schema(rng, depth) for _ in range(rng.randrange(1, 4))]}


def _one_of(rng, depth):
    """A union that a property tells apart."""
    tags = rng.sample(WORDS, rng.randrange(2, 4))
    branches = [
        {"type": "object", "properties": {"kind": {"const": tag}, "value": _schema(rng, depth)}, "required": ["kind"]}
        for tag in tags
    ]
    return {"oneOf": branches}


def _all_of(rng, depth):
    names = rng.sample(WORDS, 3)
    parts = [{"type": "object", "properties": {name: _schema(rng, depth)}, "required": [name]} for name in names[:2]]
    return {"allOf": parts, "properties": {names[2]: _schema(rng, depth)}}


def _with_definitions(rng, schema):
    """A list of what `schema` is, by reference and with itself inside."""
    item = {"type": "object", "properties": {"value": {"$ref": "#/$defs/value"}, "next": {"$ref": "#/$defs/item"}}}
    item["required"] = rng.choice([[], ["value"]])
    return {"$ref": "#/$defs/item", "$defs": {"value": schema, "item": item}}
