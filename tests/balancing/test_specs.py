"""How backends are named: by options, in a file, by the admin API."""

import pytest

from core.balancing.specs import Spec, backend_url, make_spec, parse_spec


def test_a_backend_is_named_by_its_url_its_slots_and_its_weight():
    assert parse_spec("gpu1:8080") == Spec("http://gpu1:8080")
    assert parse_spec("https://gpu2:8080/,slots=8,weight=2.5") == Spec("https://gpu2:8080", 8, 2.5)
    assert parse_spec("http://[::1]:80;slots=8") == Spec("http://[::1]:80", 8)


@pytest.mark.parametrize(
    "text", ["http://x,slots=0", "http://x,slots=two", "http://x,weight=0", "http://x,weight=nan", "http://x,speed=9",
             "http://x,slots", "slots=8", "http://user@x", "http://x,key=", "http://x,key=@/no/such/file",
             "http://x,key=sec ret", "http://x,key=sec\nret", "http://x,key=secrét", "http://x,pass-key=no",
             "http://x,key=sec,ret"]
)  # fmt: skip
def test_a_backend_with_wrong_options_is_refused_and_its_key_is_not_told(text):
    with pytest.raises(ValueError) as caught:
        parse_spec(text)
    assert "sec" not in str(caught.value)


def test_a_backends_key_is_given_as_it_is_or_in_a_file_and_is_not_shown(tmp_path):
    (tmp_path / "key").write_text("# its key\nsecret\n")
    for text in ("http://x,key=secret,slots=2", "http://x;key=@%s;slots=2" % (tmp_path / "key")):
        spec = parse_spec(text)
        assert spec == Spec("http://x", 2, key="secret") and "secret" not in repr(spec)
    assert parse_spec("http://x,pass-key").pass_key and not parse_spec("http://x").pass_key


@pytest.mark.parametrize("value", [True and {}, [], "8x"])
def test_a_spec_of_unchecked_values_is_checked(value):
    with pytest.raises(ValueError):
        make_spec("http://x", slots=value)


@pytest.mark.parametrize(
    "text, url",
    [
        ("HTTP://gpu1:08080/", "http://gpu1:8080"),
        ("https://gpu_1.example.org.", "https://gpu_1.example.org."),
        ("[::1]:8080", "http://[::1]:8080"),
        ("http://[0:0::0001]", "http://[::1]"),
        ("http://münchen.example:1", "http://xn--mnchen-3ya.example:1"),
    ],
)
def test_a_backends_url_has_one_form(text, url):
    assert backend_url(text) == backend_url(url) == url


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "http://", "http://x/path", "http://x?y", "://", "file:///etc/passwd", "http://h:x", "http://:p@h",
     "http://:80", "http://u@h", "http://u:p@h", "http://h:0", "http://h:65536", "http://h:99999999", "http://h:",
     "http://h:-1", "http://h:+1", "http://h:8²", "http://h:٨", "http://a b", "http://a\tb", "http://a\nb",
     "http://a\0b", "http://a\x7fb", " http://a", "http://a ", "http://::1:80", "http://[::1", "http://[::g]",
     "http://[]", "http://]", "http://a..b", "http://.a", "http://" + "a" * 64, "http://" + "a." * 127 + "a",
     "http://\ud800", "http://a\u3002\u3002b", "http://" + "é" * 64, "http://a%41", "http://a\\b", "http://a#b",
     "http://a?", "http://a=b", "http://a,b", "http://a|b", "http:///x", "http:x", "//a//b", "",
     pytest.param("x" * 5_000_000, id="5 MB"), pytest.param("http://h:" + "1" * 5_000_000, id="5 MB of a port")]
)  # fmt: skip
def test_a_backend_that_is_no_url_is_refused_in_few_words(url):
    with pytest.raises(ValueError) as caught:
        backend_url(url)
    assert len(str(caught.value)) < 300
