"""Damaged texts."""

from __future__ import annotations

LAUGHS = "\n".join(["a0: &a0 ha"] + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]"
                                     for k in range(1, 30)])  # fmt: skip


CHAIN = "\n".join(["a0: &a0 [ha]"] + [f"a{k}: &a{k} [*a{k - 1}]" for k in range(1, 200)])


DAMAGED = {
    "an alias bomb": LAUGHS,
    "aliases in a row": CHAIN,
    "itself": "a: &a [*a]",
    "deep lists": "[" * 150 + "]" * 150,
    "deeper lists": "[" * 100_000,
    "deep blocks": "- " * 150 + "x",
    "cut off": "a: [1, 2",
    "tabs": "a:\n\t- b",
    "two of them": "a: 1\n---\nb: 2",
    "an empty number": "a: !!int ''",
    "no number": "a: !!float x",
    "no truth": "a: !!bool x",
    "no date": "a: !!timestamp x",
    "a date that is none": "a: 2020-99-99",
    "a list as a name": "? [a]\n: 1",
    "a long number": "a: " + "1" * 5000,
    "code": "!!python/object/apply:os.getcwd []",
}
