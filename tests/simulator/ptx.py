"""The text of a compiled kernel as instructions, in blocks that threads enter at the first and leave at the last."""

import re
from dataclasses import dataclass, field

_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{(.*?)\n\$L__func_end0:", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)[^,]*?\s(\w+)\s*(?:,|$)")
_LINE = re.compile(r"\.loc\b.*//\s*(\S+)")
_STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


@dataclass(frozen=True)
class Instruction:
    """One instruction, which threads execute where the predicate holds; '' is a predicate that always holds."""

    text: str
    source: str  # file:line:column of the Triton kernel
    predicate: str
    negated: bool
    opcode: tuple[str, ...]
    operands: tuple[str, ...]

    def __str__(self) -> str:
        """Name the instruction in messages."""
        return f"`{self.text}` of {self.source}"

    def unknown(self) -> NotImplementedError:
        """Return the error for an instruction that the simulator does not have."""
        return NotImplementedError(f"the simulator has no instruction {self}")


@dataclass
class Block:
    """Instructions that threads execute from the first to the last; afterwards they go on with one of two blocks.

    Args:
        instructions: All but the branch at the end.
        branch: The branch, if some threads may take it and others not.
        target: The block after the branch for threads that take it.
        following: The block after it for the others, and for all where there is no branch.
        join: The block in which all threads meet again.
    """

    instructions: list[Instruction] = field(default_factory=list)
    branch: Instruction | None = None
    target: int = -1
    following: int = -1
    join: int = -1

    @property
    def successors(self) -> tuple[int, ...]:
        """Return the blocks that threads may go on with."""
        return (self.target, self.following) if self.branch else (self.following,)


@dataclass
class Program:
    """A kernel: its parameters by name with their types, and its blocks, the last of which is empty and the end."""

    name: str
    parameters: dict[str, str]
    threads: int
    blocks: list[Block]
    bits: dict[str, int]  # of registers, by what their names begin with

    @classmethod
    def parse(cls, ptx: str) -> "Program":
        """Read the only kernel of a text."""
        found = _ENTRY.search(ptx)
        if found is None:
            raise ValueError(f"no kernel is in:\n{ptx}")
        name, parameters, directives, body = found.groups()
        threads = re.search(r"\.reqntid\s+(\d+)(?![\s\d]*,)", directives)
        registers = re.findall(r"\.reg\s+\.(pred|[a-z]\d+)\s+(%[a-z]+)<", body)
        if threads is None:
            raise ValueError(f"the threads of {name} lie on no line: {directives.strip()}")
        program = cls(
            name=name,
            parameters={parameter: kind for kind, parameter in _PARAMETER.findall(parameters.strip())},
            threads=int(threads[1]),
            blocks=_blocks(body),
            bits={prefix: 1 if kind == "pred" else int(kind[1:]) for kind, prefix in registers},
        )
        _find_joins(program.blocks)
        return program


def _blocks(body: str) -> list[Block]:
    """Cut the body of a kernel at its labels and after its branches."""
    numbers: dict[str, int] = {}  # of blocks, by label
    blocks, branches, source = [Block()], [], "an unknown line"

    def begin() -> None:
        blocks[-1].following = len(blocks)
        blocks.append(Block())

    for line in body.splitlines():
        code = line.partition("//")[0]
        if at := _LINE.search(line):
            source = at[1]
        if label := re.fullmatch(r"\s*(\$L__BB\w+):\s*", code):
            begin()
            numbers[label[1]] = len(blocks) - 1
        for instruction in _instructions(code, source):
            if instruction.opcode[0] in ("bra", "ret"):
                branches.append((blocks[-1], instruction))
                begin()
            else:
                blocks[-1].instructions.append(instruction)
    begin()
    for block, instruction in branches:
        target = numbers[instruction.operands[0]] if instruction.operands else len(blocks) - 1
        if instruction.predicate:
            block.branch, block.target = instruction, target
        else:
            block.following = target
    return blocks


def _instructions(code: str, source: str) -> list[Instruction]:
    """Return the instructions of a line; braces around several, and declarations, are none."""
    instructions = []
    for statement in code.split(";"):
        text = " ".join(statement.split()).removeprefix("{ ").strip()
        if not text or text in "{}" or text[0] in ".$":
            continue
        found = _STATEMENT.fullmatch(text)
        if found is None:
            raise ValueError(f"this is no instruction: {text}")
        negated, predicate, opcode, operands = found.groups("")
        parts, listed = tuple(opcode.split(".")), tuple(_OPERAND.findall(operands))
        instructions.append(Instruction(text, source, predicate, bool(negated), parts, listed))
    return instructions


def _find_joins(blocks: list[Block]) -> None:
    """Set ``join`` of each block with a branch: of the blocks on all ways to the end, the nearest."""
    end = len(blocks) - 1
    everything = (1 << len(blocks)) - 1
    after = [everything] * end + [1 << end]  # of each block, those on all ways from it, a bit for each
    changed = True
    while changed:
        changed = False
        for number in reversed(range(end)):
            common = everything
            for successor in blocks[number].successors:
                common &= after[successor]
            common |= 1 << number
            changed |= common != after[number]
            after[number] = common
    for number, block in enumerate(blocks):
        if block.branch:
            others = [other for other in range(len(blocks)) if other != number and after[number] >> other & 1]
            block.join = max(others, key=lambda other: after[other].bit_count())
