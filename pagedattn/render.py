"""From a spec to CUDA source: one template of templates/, filled by Jinja2, and the headers of kernels/ that it includes."""

from __future__ import annotations

import marshal
import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedattn import env, params, resources
from pagedattn.errors import RenderError

if TYPE_CHECKING:
    from jinja2 import BytecodeCache, Environment

    from pagedattn.spec import KernelSpec

_INCLUDE = re.compile(rb'#[ \t]*include[ \t]*"([^"\n]+)"')


def render(spec: KernelSpec) -> str:
    """The CUDA source of `spec`.

    Raises
    ------
    RenderError
        If the template is missing or fails; the text names it, its line and the spec.

    Examples
    --------
    >>> from pagedattn.spec import KernelSpec
    >>> spec = KernelSpec(op="decode", arch="sm_80")
    >>> spec.name in render(spec)
    True
    """
    context = {**spec.context(), "params_struct": params.c_struct()}
    try:
        return _environment().get_template(spec.template).render(context)
    except Exception as error:
        raise _explained(error, spec, context) from error


@cache
def headers() -> dict[str, bytes]:
    """Every header of kernels/ by the name that an #include gives it, such as "ptx/mma.cuh"."""
    root = resources.folder("kernels")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.cuh"))}


def included(source: str) -> dict[str, bytes]:
    """The headers that `source` includes, directly or through another header, in the order of their names.

    Conditions are not evaluated: an #include under #if counts. A name that kernels/ lacks is left for the compiler to refuse.

    >>> included("int x;")
    {}
    """
    known = headers()
    found: dict[str, bytes] = {}
    names = _named(source.encode())
    while names:
        name = names.pop().decode()
        if name in known and name not in found:
            found[name] = known[name]
            names += _named(known[name])
    return dict(sorted(found.items()))


def _named(text: bytes) -> list[bytes]:
    """What the #include lines of a text name. To look for them first, and then for where they stand, takes a fifth of the time."""
    return [x[1] for x in _INCLUDE.finditer(text) if not text[text.rfind(b"\n", 0, x.start()) + 1 : x.start()].strip(b" \t")]


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(resources.folder("templates")),
        line_statement_prefix="//%",
        line_comment_prefix="//#",
        undefined=StrictUndefined,
        autoescape=False,  # the output is CUDA, not HTML
        keep_trailing_newline=True,
        auto_reload=False,
        bytecode_cache=_parsed_templates(),
    )


def _parsed_templates() -> BytecodeCache | None:
    """Parsed templates, kept beside the kernels: parsing is most of what finding a kernel in the store would cost."""
    from jinja2.bccache import Bucket, BytecodeCache, bc_magic

    folder = env.home() / "parsed"

    def head(bucket: Bucket) -> bytes:  # the versions of Python and Jinja2, and the template's checksum
        return bc_magic + bucket.checksum.encode()

    class Kept(BytecodeCache):  # in files that are read at once: Jinja2's own are read in little pieces
        def load_bytecode(self, bucket: Bucket) -> None:
            with suppress(OSError, EOFError, ValueError, TypeError):
                held = (folder / bucket.key).read_bytes()
                if held.startswith(head(bucket)):
                    bucket.code = marshal.loads(held[len(head(bucket)) :])

        def dump_bytecode(self, bucket: Bucket) -> None:
            temporary = folder / f"{bucket.key}.{os.urandom(8).hex()}"
            with suppress(OSError):  # a full or read-only disk costs time, nothing else
                try:
                    temporary.write_bytes(head(bucket) + marshal.dumps(bucket.code))
                    temporary.replace(folder / bucket.key)
                finally:
                    temporary.unlink(missing_ok=True)

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return Kept()


def _explained(error: Exception, spec: KernelSpec, context: dict[str, Any]) -> RenderError:
    from jinja2 import TemplateNotFound, TemplateSyntaxError, UndefinedError

    root = resources.folder("templates")
    if isinstance(error, TemplateNotFound):
        known = ", ".join(sorted(p.name for p in root.glob("*.j2"))) or "none"
        return RenderError(f"{spec.name} needs the template {error.name!r}, which templates/ lacks. It has: {known}.")
    if isinstance(error, TemplateSyntaxError):
        name, line = error.name or spec.template, error.lineno
    else:
        name, line = _place(error, root) or (spec.template, 0)
    text = str(error) if isinstance(error, (TemplateSyntaxError, UndefinedError)) else f"{type(error).__name__}: {error}"
    hint = f" It sees: {', '.join(sorted(context))}." if isinstance(error, UndefinedError) else ""
    return RenderError(f"templates/{name}, line {line}, for {spec.name}: {text.rstrip('.')}.{hint}{_quoted(root / name, line)}")


def _place(error: Exception, root: Path) -> tuple[str, int] | None:
    """The innermost template line of an error's traceback, which Jinja2 has rewritten to name templates."""
    import traceback  # here and not above: `import pagedattn` stays quick

    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.lineno and Path(frame.filename).is_relative_to(root):
            return Path(frame.filename).relative_to(root).as_posix(), frame.lineno
    return None


def _quoted(path: Path, line: int) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return f"\n  {line} | {lines[line - 1]}" if line else ""
    except (OSError, IndexError):
        return ""
