"""What a person names when a model is wanted, and which files that means on Hugging Face. Pure, but for the two calls.

    parse(text, endpoint)          "owner/name", "owner/name:QUANT" or ":FILE", or a URL   → Repository or Link
    Hub.offers(repository)         the models of a repository: each with its quantization and its files
    pick(offers, quantization)     the one that is meant, or the most sensible one; NoChoice says what there is

A model may be split into several files, NAME-00001-of-00003.gguf and so on: they are one offer. Whatever a server
says is not trusted: file names are reduced to their last part, and refused where that could name anything but a plain
.gguf file in the models folder.

Source of the API: https://huggingface.co/docs/hub/api, GET /api/models/{repo}/revision/{revision}?blobs=true.
"""

import os
import re
import urllib.parse
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from core.commands.web import Web, WebError, origin
from core.terminal import harmless, size

HUGGING_FACE = "https://huggingface.co"
# The most sensible quantizations, the best first: good answers for the memory; then what is near to them.
PREFERRED = (
    "Q4_K_M", "UD-Q4_K_XL", "Q4_K_L", "Q4_K_S", "Q4_K", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0", "MXFP4_MOE", "MXFP4",
    "Q5_K_M", "Q5_K_S", "UD-Q5_K_XL", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "UD-Q6_K_XL", "Q3_K_L", "Q3_K_M", "UD-Q3_K_XL",
    "Q8_0", "UD-Q8_K_XL", "Q3_K_S", "IQ3_M", "IQ3_S", "Q2_K", "BF16", "F16", "F32",
)  # fmt: skip
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9_][\w.-]{0,95})(?::([^:]{1,300}))?")
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_QUANTIZATION = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q[1-8]|TQ[12]|MXFP4|NVFP4|BF16|FP?16|FP?32)(?:_[A-Z0-9]+)*)(?=[-.]|$)", re.IGNORECASE
)
_NO_MODELS = re.compile(r"(^|[-_.])(mmproj|imatrix)([-_.]|$)", re.IGNORECASE)  # companions of models
_SHA256 = re.compile("[0-9a-f]{64}")
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)  # names that are devices on Windows
_LONGEST = 200  # bytes of a file's name


class Repository(NamedTuple):
    """A repository, and what of it is wanted: a quantization, or a file's path; "" for the most sensible model."""

    name: str
    wanted: str = ""


class Link(NamedTuple):
    """One file by its URL."""

    url: str


class RemoteFile(NamedTuple):
    """One file to fetch. `size` and `sha256` are None and "" where nobody tells them beforehand."""

    name: str  # in the models folder
    url: str
    size: Optional[int] = None
    sha256: str = ""


@dataclass(frozen=True)
class Offer:
    """One model of a repository: its name without part numbers, its quantization, and its files in order."""

    path: str
    quantization: str
    files: Tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """The bytes of all its files together, as far as they are known."""
        return sum(each.size or 0 for each in self.files)


class NoChoice(Exception):
    """What is wanted can't be found, or is several things; the message says what there is."""


def parse(text: str, endpoint: str = HUGGING_FACE) -> Union[Repository, Link]:
    """Return what a person has named. Raises NoChoice."""
    for prefix in ("hf.co/", "huggingface.co/"):
        if text.lower().startswith(prefix):
            text = text[len(prefix) :]
    if "://" in text:
        return _parse_url(text, endpoint)
    match = _REPOSITORY.fullmatch(text)
    if not match:
        raise NoChoice("%r is neither a repository (Qwen/Qwen3-4B-GGUF:Q4_K_M) nor a URL" % text[:200])
    return Repository("%s/%s" % match.group(1, 2), match.group(3) or "")


def _parse_url(url: str, endpoint: str) -> Union[Repository, Link]:
    """Return what a URL means: the page of a repository, or of a file in it, or any other file."""
    try:
        at_home = origin(url) in (origin(endpoint), origin(HUGGING_FACE))
    except WebError as error:
        raise NoChoice(str(error))
    parts = urllib.parse.urlsplit(url)
    path = urllib.parse.unquote(parts.path).strip("/").split("/")
    if at_home and len(path) == 2:
        return parse("/".join(path))
    if at_home and len(path) > 4 and path[2] == "blob":  # the page about a file
        path[2] = "resolve"
        return Link(urllib.parse.urlunsplit(parts._replace(path="/" + urllib.parse.quote("/".join(path)))))
    return Link(url)


def link_file(link: Link) -> RemoteFile:
    """Return the file that a URL names. Raises NoChoice where its name is none for a model."""
    path = urllib.parse.unquote(urllib.parse.urlsplit(link.url).path)
    return RemoteFile(safe_name(path), link.url)


def safe_name(path: str) -> str:
    """Return the last part of a path from the network as a file's name. Raises NoChoice where it is not harmless."""
    name = path.rpartition("/")[2]
    good = name.lower().endswith(".gguf") and len(name.encode("utf-8", "replace")) <= _LONGEST
    good = good and not name.startswith((".", "-", " ")) and not _FORBIDDEN.search(name) and harmless(name) == name
    if not good or _RESERVED.match(name):
        raise NoChoice("%r is no name for a model file: it must be a plain name that ends in .gguf" % name[:200])
    return name


class Hub:
    """The server that has the repositories."""

    def __init__(self, web: Web, endpoint: str = HUGGING_FACE):
        self._web = web
        self._endpoint = endpoint.rstrip("/")

    def offers(self, repository: str, revision: str = "main") -> List[Offer]:
        """Return the models of a repository. Raises WebError, and NoChoice where there are none."""
        pinned = urllib.parse.quote(revision, safe="")
        url = "%s/api/models/%s/revision/%s?blobs=true" % (self._endpoint, repository, pinned)
        try:
            facts = self._web.json(url)
        except WebError as error:
            raise self._explained(error, repository)
        if not isinstance(facts, dict) or not isinstance(facts.get("siblings"), list):
            raise WebError("%s did not send a list of files" % self._endpoint)
        commit = str(facts.get("sha") or "")
        if not re.fullmatch("[0-9a-f]{40,64}", commit):
            commit = pinned  # a commit is better: a cut download goes on with the same file
        base = "%s/%s/resolve/%s/" % (self._endpoint, repository, commit)
        offers = _grouped(facts["siblings"], base)
        if not offers:
            raise NoChoice("%s holds no .gguf file; a repository whose name ends in -GGUF may" % repository)
        return offers

    def _explained(self, error: WebError, repository: str) -> WebError:
        """Return an error that says what its status means here."""
        page = "%s/%s" % (self._endpoint, repository)
        reasons = {
            401: "there is no repository %s, or it is not open to all: log in at %s, make a token and set HF_TOKEN"
            % (repository, self._endpoint),
            403: "the repository asks for consent: accept its terms at %s, and set HF_TOKEN" % page,
            404: "there is no repository or revision of this name; its page would be %s" % page,
            429: "too many requests from this address; wait, or set HF_TOKEN",
        }
        if error.status not in reasons:
            return error
        return WebError("%s: %s" % (error, reasons[error.status]), error.status, error.passing, error.wait)


def _grouped(siblings: Sequence[Any], base: str) -> List[Offer]:
    """Return the models among the files of a repository, the parts of each together."""
    groups: Dict[str, List[Tuple[int, int, RemoteFile]]] = {}
    for sibling in siblings:
        path = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if not isinstance(path, str) or not path.lower().endswith(".gguf") or _NO_MODELS.search(path):
            continue
        stem = path[: -len(".gguf")]
        part = _PART.search(stem)
        number, count = (int(part.group(1)), int(part.group(2))) if part else (1, 1)
        found = groups.setdefault(stem[: part.start()] if part else stem, [])
        found.append((number, count, _file(sibling, path, base)))
    return [_offer(stem, parts) for stem, parts in sorted(groups.items())]


def _file(sibling: Dict[str, Any], path: str, base: str) -> RemoteFile:
    lfs = sibling.get("lfs") if isinstance(sibling.get("lfs"), dict) else {}
    count, digest = sibling.get("size"), str((lfs or {}).get("sha256") or "").lower()
    known = count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None
    good = digest if _SHA256.fullmatch(digest) else ""
    return RemoteFile(safe_name(path), base + urllib.parse.quote(path), known, good)


def _offer(stem: str, parts: List[Tuple[int, int, RemoteFile]]) -> Offer:
    """Return the model that some files make. Raises NoChoice where parts are missing."""
    parts.sort(key=lambda part: part[0])
    if [part[0] for part in parts] != list(range(1, parts[0][1] + 1)):
        raise NoChoice("the repository lacks parts of %s: it has %d of %d" % (stem, len(parts), parts[0][1]))
    return Offer(stem, quantization_of(stem), tuple(part[2] for part in parts))


def quantization_of(stem: str) -> str:
    """Return the quantization that a file's path tells, in capitals; "" where it tells none."""
    for text in reversed(stem.split("/")):  # a folder may say it where the file does not
        found = _QUANTIZATION.findall(text)
        if found:
            return found[-1].upper().replace("FP16", "F16").replace("FP32", "F32").replace("BF16", "BF16")
    return ""


# ------------------------------------------------------------------------------------------------ the choice


def pick(offers: Sequence[Offer], wanted: str) -> Offer:
    """Return the offer that is wanted, by its quantization or its file; for "", the most sensible one.

    Raises NoChoice where there is none, or more than one.
    """
    if not wanted:
        return min(offers, key=_rank)
    plain = wanted.lower()
    if plain.endswith(".gguf"):
        plain = _PART.sub("", plain[: -len(".gguf")])
        found = [each for each in offers if plain in (each.path.lower(), os.path.basename(each.path).lower())]
    else:
        found = [each for each in offers if each.quantization.lower() == plain]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(each.path + ".gguf" for each in found)
        raise NoChoice("%r is several models here; name one of these files: %s" % (wanted[:100], names))
    have = ", ".join(sorted({"%s (%s)" % (label(each), size(each.size)) for each in offers}))
    raise NoChoice("there is no %r; there are: %s" % (wanted[:100], have))


def label(offer: Offer) -> str:
    """Return how an offer is asked for: by its quantization, or by its file where it tells none."""
    return offer.quantization or offer.path + ".gguf"


def _rank(offer: Offer) -> Tuple[int, int, str]:
    known = offer.quantization in PREFERRED
    return (PREFERRED.index(offer.quantization) if known else len(PREFERRED), offer.size, offer.path)
