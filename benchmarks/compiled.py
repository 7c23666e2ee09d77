"""The figures of a compiled program: those that the compiler reports, and counts in its text.

The text is XLA's, in which every line of a computation is an instruction:

    %name = f32[64,10]{1,0} fusion(%operand, %other), kind=kLoop, calls=%fused_computation
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    *("all-reduce-start", "all-gather-start", "collective-permute-start"),
)
# Instructions that neither read nor write an array themselves.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "call", "conditional")


class Instruction(NamedTuple):
    """An instruction of a compiled program, outside of its fusions.

    Attributes:
      name: its name, unique in the program.
      result: the type of its result; of all of its results, if it is a tuple.
      kind: what it does.
      operands: the names of what it reads, and possibly of other things.
    """

    name: str
    result: str
    kind: str
    operands: list[str]


def program_facts(compiled: Any) -> dict[str, Any]:
    """The figures of a compiled program.

    Returns:
      In bytes: `temporaries`, `accessed` (by all instructions; an estimate of ours if the backend
      does not report it), `least` (arguments and results, each once), and the arguments `on_device`
      and `on_host`. As counts: the `fusions`
      and `copies` that make arrays, the `conditionals` and `collectives`, and the `aliased`
      arrays among the arguments, whose memory is that of a result. Scalars are not counted, nor
      are transfers to and from the faster memory of a TPU (marked S(1)).
    """
    text = compiled.as_text()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    found = list(instructions(text))
    kinds = [x.kind for x in found]
    arrays = [x for x in found if re.search(r"\[\d", x.result)]
    copies = [x for x in arrays if x.kind in ("copy", "copy-start") and "S(1)" not in x.result]
    return {
        "temporaries": memory.temp_size_in_bytes,
        "accessed": cost["bytes accessed"] if cost else estimated_bytes(found),
        "is_estimated": not cost,
        "least": memory.argument_size_in_bytes + memory.output_size_in_bytes,
        "on_device": argument_bytes(text, on_host=False),
        "on_host": argument_bytes(text, on_host=True),
        "fusions": sum(x.kind == "fusion" for x in arrays),
        "copies": len(copies),
        "conditionals": kinds.count("conditional"),
        "collectives": sum(kind in COLLECTIVES for kind in kinds),
        "aliased": aliased(text),
    }


def instructions(text: str) -> Iterator[Instruction]:
    """The instructions of all computations but those inside of fusions."""
    fused = set(re.findall(r" fusion\(.*?calls=(%[\w.-]+)", text))
    for name, lines in re.findall(r"^(?:ENTRY )?(%\S+) .*\{\n((?:  .*\n)*)\}", text, re.M):
        if name in fused:
            continue
        for line in lines.splitlines():
            made = re.match(r"  (?:ROOT )?(%\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line)
            yield Instruction(*made.groups()[:3], re.findall(r"%[\w.-]+", made[4]))


def estimated_bytes(found: list[Instruction]) -> int:
    """What all instructions read and write, if each reads all of its operands."""
    sizes = {x.name: array_bytes(x.result) for x in found}
    return sum(
        sizes[x.name] + sum(sizes.get(operand, 0) for operand in x.operands)
        for x in found
        if x.kind not in FREE
    )


def array_bytes(result: str) -> int:
    """The size of all arrays in the type of a result."""
    return sum(
        math.prod(map(int, filter(None, shape.split(",")))) * max(1, int(bits or 0) // 8)
        for bits, shape in re.findall(r"\b[a-z]+(\d*)\w*\[([\d,]*)\]", result)
    )


def argument_bytes(text: str, *, on_host: bool) -> int:
    """The size of all arguments in the memory of the host (marked S(5)), or in the other."""
    layout = re.search(r"entry_computation_layout=\{(.*?)\}, \w+=", text)[1]
    arguments, _ = layout.split(")->")
    arrays = re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", arguments)
    return sum(array_bytes(array) for array in arrays if ("S(5)" in array) == on_host)


def aliased(text: str) -> int:
    """The number of arguments, scalars apart, whose memory becomes that of a result."""
    entry = text[text.index("\nENTRY ") :]
    arrays = set(re.findall(r"= \w+\[\d\S* parameter\((\d+)\)", entry))
    pairs = re.search(r"input_output_alias=\{(.*?)\}, entry_computation_layout", text)
    return sum(n in arrays for n in re.findall(r": \((\d+), ", pairs[1])) if pairs else 0
