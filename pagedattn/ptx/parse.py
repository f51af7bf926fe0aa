"""PTX text as a Program: registers, variables, parameters and instructions, each with its source lines through .loc and .file."""

from __future__ import annotations

import re
import struct

from pagedattn.ptx.faults import Line, ParseError
from pagedattn.ptx.program import BYTES, KINDS, Address, Imm, Instruction, Operand, Program, Reg, Special, Symbol, Variable


def parse(ptx: str, entry: str | None = None, root: str = "/pagedattn/") -> Program:
    """Read one entry point.

    Parameters
    ----------
    ptx : str
        What NVRTC emits.
    entry : str, optional
        Its name; None: the only one.
    root : str
        What is cut from the front of file names.

    Raises
    ------
    ParseError
        The text is not what this parser reads; the text says which line.

    Examples
    --------
    >>> program = parse('''.version 8.0
    ... .target sm_80
    ... .visible .entry f(.param .u64 f_param_0) {
    ...     .reg .b32 %r<3>;
    ...     mov.u32 %r1, %tid.x;
    ...     add.s32 %r2, %r1, 1;
    ...     ret;
    ... }''')
    >>> [".".join(i.op) for i in program.instructions]
    ['mov.u32', 'add.s32', 'ret']
    """
    return _Parser(ptx, entry, root).program


class _Parser:
    _SPECIAL = re.compile(
        r"%(?:(?:tid|ntid|ctaid|nctaid)\.[xyz]|laneid|warpid|nwarpid|smid|nsmid|gridid|clock\w*|lanemask_\w+|dynamic_smem_size|total_smem_size)$"
    )

    def __init__(self, ptx: str, entry: str | None, root: str) -> None:
        found = re.search(r"^\s*\.target\s+([\w, ]+)", ptx, re.MULTILINE)
        names = re.findall(r"\.entry\s+([\w$]+)", ptx)
        if not found or not names:
            raise ParseError("PTX must have a .target and an .entry.")
        if entry is None and len(names) > 1:
            raise ParseError(f"`entry` must be one of {', '.join(names)}; got None.")
        if entry is not None and entry not in names:
            raise ParseError(f"`entry` must be one of {', '.join(names)}; got {entry!r}.")
        self.program = Program(entry or names[0], found[1].strip())
        self.files = {int(n): f.removeprefix(root) for n, f in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', ptx, re.MULTILINE)}
        self.inlined: dict[Line, tuple[Line, ...]] = {}
        self.lines: tuple[Line, ...] = ()
        self.scopes: list[dict[str, Reg]] = []
        self.prefixes: dict[str, tuple[str, int]] = {}
        self.declared: dict[str, Reg] = {}
        self.labels: list[str] = []
        self._read(ptx)

    def _read(self, ptx: str) -> None:
        state, statement, first = "module", "", 0
        for number, raw in enumerate(ptx.splitlines(), 1):
            line = raw.partition("//")[0].strip() if '"' not in raw else raw.strip()
            if not line:
                continue
            if state == "skip":
                state = "module" if line.startswith("}") else state
                continue
            if line.startswith(".section"):
                state = "skip"
                continue
            if line.startswith((".file", ".pragma", ".version", ".target", ".address_size")):
                continue
            if line.startswith(".loc"):
                self._loc(line)
                continue
            statement, first = (f"{statement} {line}", first) if statement else (line, number)
            while statement:
                if state == "module":
                    if ".entry" in statement or ".func" in statement:
                        if "{" not in statement:
                            break
                        head, _, statement = statement.partition("{")
                        name = re.search(r"\.(?:entry|func)\s+(?:\([^)]*\)\s*)?([\w$]+)", head)
                        mine = name is not None and name[1] == self.program.name
                        state = "body" if mine else "other"
                        if mine:
                            self._params(head)
                            self.scopes.append({})
                        depth = 1
                        statement = statement.strip()
                        continue
                    if ";" not in statement:
                        break
                    head, _, statement = statement.partition(";")
                    self._variable(head.strip(), first)
                elif state == "other":
                    depth += statement.count("{") - statement.count("}")
                    statement = ""
                    state = "module" if depth == 0 else state
                elif statement[0] == "{":
                    self.scopes.append({})
                    statement = statement[1:]
                elif statement[0] == "}":
                    self.scopes.pop()
                    statement = statement[1:]
                    if not self.scopes:
                        state = "module"
                elif match := re.match(r"([\w$]+):\s*(?!:)", statement):
                    self.program.labels[match[1]] = len(self.program.instructions)
                    statement = statement[match.end() :]
                elif ";" not in statement:
                    break
                else:
                    head, _, statement = statement.partition(";")
                    self._statement(head.strip(), first)
                statement = statement.strip()
                first = number

    def _loc(self, line: str) -> None:
        match = re.match(r"\.loc\s+(\d+)\s+(\d+)\s+\d+(?:.*inlined_at\s+(\d+)\s+(\d+))?", line)
        if not match or match[2] == "0":
            return  # line 0: moved code, which stays with the line before it
        here = Line(self.files.get(int(match[1]), "?"), int(match[2]))
        outer: tuple[Line, ...] = ()
        if match[3]:
            caller = Line(self.files.get(int(match[3]), "?"), int(match[4]))
            outer = (caller, *self.inlined.get(caller, ()))
        if len(outer) < 16:
            self.inlined[here] = outer
        self.lines = (here, *outer)

    def _params(self, head: str) -> None:
        offset = 0
        for declaration in re.findall(r"\.param\s+([^,)]+)", head):
            match = re.match(r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?", declaration.replace(".ptr", "").strip())
            if not match:
                raise ParseError(f"a parameter must look like .param .align 8 .b8 name[n]; got {declaration!r}.")
            size = BYTES[KINDS[match[2]]]
            align = int(match[1] or size)
            offset = (offset + align - 1) // align * align
            self.program.params[match[3]] = (offset, size * int(match[4] or 1))
            offset += size * int(match[4] or 1)
        self.program.param_bytes = offset

    def _variable(self, text: str, number: int) -> None:
        match = re.search(
            r"\.(shared|local|const|global)\b(?:\s+\.attribute\([^)]*\))?(?:\s+\.align\s+(\d+))?\s+\.(\w+)\s+([\w$]+)(\[\d*\])?(?:\s*=\s*(.*))?$",
            text,
        )
        if not match:
            raise ParseError(f"PTX line {number} must declare a variable; got {text!r}.")
        space, align, kind, name, count, initial = match.groups()
        width = BYTES[KINDS[kind]]
        size = -1 if count == "[]" else width * int(count[1:-1]) if count else width
        data = b""
        if initial:
            values = [_constant(v.strip()) for v in initial.strip("{} ").split(",")]
            data = b"".join(_bytes(v, KINDS[kind]) for v in values)
        self.program.variables[name] = Variable(space, int(align or width), size, data.ljust(max(size, 0), b"\0"))

    def _statement(self, text: str, number: int) -> None:
        if text.startswith(".reg"):
            self._registers(text, number)
            return
        if text.startswith("."):
            if not text.startswith(".pragma"):
                self._variable(text, number)
            return
        if not text:
            return
        guard = None
        body = text
        if text[0] == "@":
            predicate, _, body = text[1:].partition(" ")
            negated = predicate.startswith("!")
            register = self._register(predicate.lstrip("!"))
            if register is None:
                raise ParseError(f"PTX line {number} must name a declared predicate; got {predicate!r}.")
            guard = register, negated
            body = body.strip()
        opcode, _, rest = body.replace("\t", " ").partition(" ")
        operands = [self._operand(o, number) for o in _split(rest)]
        self.program.instructions.append(Instruction(tuple(opcode.split(".")), operands, guard, " ".join(text.split()), number, self.lines))

    def _registers(self, text: str, number: int) -> None:
        match = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", text)
        if not match or match[1] not in KINDS:
            raise ParseError(f"PTX line {number} must declare registers of a known type; got {text!r}.")
        kind = KINDS[match[1]]
        for name in match[2].split(","):
            name = name.strip()
            if many := re.match(r"(.+)<(\d+)>$", name):
                self.prefixes[many[1]] = kind, int(many[2])
            else:
                self.scopes[-1][name] = self._new(name, kind)

    def _new(self, name: str, kind: str) -> Reg:
        self.program.kinds.append(kind)
        self.program.names.append(name)
        return Reg(len(self.program.kinds) - 1, kind)

    def _register(self, name: str) -> Reg | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        if name in self.declared:
            return self.declared[name]
        match = re.match(r"(.*?)(\d+)$", name)
        if match and match[1] in self.prefixes and int(match[2]) < self.prefixes[match[1]][1]:
            register = self.declared[name] = self._new(name, self.prefixes[match[1]][0])
            return register
        return None

    def _operand(self, text: str, number: int) -> Operand:
        text = text.strip()
        if text[:1] == "{":
            return tuple(self._operand(t, number) for t in _split(text[1:-1]))
        if text[:1] == "[":
            base, sign, offset = re.match(r"\[\s*([^+\s\]-]+)\s*(\+?)\s*(-?\w*)\s*\]$", text).groups()  # type: ignore[union-attr]
            register = self._register(base)
            where = register if register is not None else Imm(int(base, 0)) if base[0].isdigit() else Symbol(base)
            return Address(where, int(offset, 0) if sign or offset else 0)
        if "|" in text:
            return ("|", *(self._operand(t, number) for t in text.split("|")))
        if text == "_":
            return ("_",)
        register = self._register(text)
        if register is not None:
            return register
        if text[0] == "%":
            if self._SPECIAL.match(text):
                return Special(text[1:])
            raise ParseError(f"PTX line {number} names {text!r}, which is no register and no special register that is known.")
        if text[0].isdigit() or text[0] in "-+":
            return Imm(_constant(text))
        if text[0] == "!":
            return ("!", self._operand(text[1:], number))
        name, _, offset = text.partition("+")
        return Symbol(name, int(offset or 0))


def _split(text: str) -> list[str]:
    """Operands, separated by commas outside brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "{[":
            depth += 1
        elif c in "}]":
            depth -= 1
        elif c == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    rest = text[start:].strip()
    return [*parts, rest] if rest else parts


def _constant(text: str) -> int | float:
    if text[:2] in ("0f", "0F"):
        return float(struct.unpack("<f", int(text[2:], 16).to_bytes(4, "little"))[0]) if text[2:].lower() not in _NANS else float("nan")
    if text[:2] in ("0d", "0D"):
        return float(struct.unpack("<d", int(text[2:], 16).to_bytes(8, "little"))[0])
    if "." in text:
        return float(text)
    text = text.rstrip("U")
    return int(text, 8) if re.fullmatch(r"-?0[0-7]+", text) else int(text, 0)


_NANS = ("7fffffff", "7fc00000")


def _bytes(value: int | float, kind: str) -> bytes:
    if kind in ("f4", "f8"):
        return struct.pack("<f" if kind == "f4" else "<d", value)
    return (int(value) & (1 << 8 * BYTES[kind]) - 1).to_bytes(BYTES[kind], "little")
