"""Reverse-mode differentiation over graph nodes: a forward node notes how its gradient is made of nodes.

The graph is written forwards once; `backward` then walks the notes from the last to the first (Griewank and Walther,
Evaluating Derivatives, 2008). Only what depends on a leaf gets a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgellm.export.nodes import Nodes

Rule = Callable[[str], str]
"""From the name of an output's gradient to that of an input's."""


class Tape:
    """Differentiable operations over the nodes of `b`; tensors are names. leaves: what gradients are wanted of."""

    def __init__(self, b: Nodes, leaves: Sequence[str]) -> None:
        self.b = b
        self._live = set(leaves)
        self._gradients: dict[str, list[str]] = {}
        self._notes: list[tuple[list[str], Callable[[list[str]], None]]] = []

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node that is not differentiated."""
        return self.b.node(kind, list(inputs), f"{kind}.{len(self.b.nodes)}", **attributes)

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.b.constant(f"number.{value!r}", np.float32(value))

    def integers(self, *values: int) -> str:
        """An int64 vector."""
        return self.b.constant(f"integers.{values}", np.array(values, np.int64))

    def seed(self, name: str, gradient: str) -> None:
        """Add to the gradient of a tensor, where it depends on a leaf."""
        if name in self._live:
            self._gradients.setdefault(name, []).append(gradient)

    def backward(self, leaf: str, output: str) -> str:
        """The gradient of a leaf, as `output`; the notes are walked at the first call."""
        while self._notes:
            outputs, rule = self._notes.pop()
            rule([self._gradient(name) for name in outputs])
        return self.b.node("Identity", [self._gradient(leaf)], output)

    def _gradient(self, name: str) -> str:
        parts = self._gradients[name]
        return parts[0] if len(parts) == 1 else self.node("Sum", *parts)

    def _note(self, outputs: list[str], inputs: Sequence[str], rule: Callable[[list[str]], None]) -> None:
        if self._live & set(inputs):
            self._live |= set(outputs)
            self._notes.append((outputs, rule))

    def _noted(self, output: str, **rules: tuple[str, Rule]) -> str:
        """The output, with a rule for every input."""

        def rule(gradients: list[str]) -> None:
            for name, back in rules.values():
                if name in self._live:
                    self.seed(name, back(gradients[0]))

        self._note([output], [name for name, _ in rules.values()], rule)
        return output

    def linear(self, x: str, matrix: str, bias: str = "") -> str:
        """x W^T + bias for a packed W: NMMatMul in float32, and NMMatMulT on the way back."""

        def product(kind: str, x: str, *optional: str, **more: Any) -> str:
            return self.b.packed(kind, x, matrix, f"{kind}.{len(self.b.nodes)}", optional, **more)

        y = product("NMMatMul", x, *([bias] if bias else []), activation="none", exact=1.0)
        return self._noted(y, x=(x, lambda dy: product("NMMatMulT", dy)))

    def matmul(self, x: str, y: str, rank: int) -> str:
        """x y over the last two of `rank` dimensions."""
        turn = [*range(rank - 2), rank - 1, rank - 2]

        def turned(a: str) -> str:
            return self.node("Transpose", a, perm=turn)

        return self._noted(
            self.node("MatMul", x, y),
            x=(x, lambda dz: self.node("MatMul", dz, turned(y))),
            y=(y, lambda dz: self.node("MatMul", turned(x), dz)),
        )

    def add(self, x: str, y: str) -> str:
        """x + y of one shape."""
        return self._noted(self.node("Add", x, y), x=(x, lambda dz: dz), y=(y, lambda dz: dz))

    def plus(self, x: str, constant: str) -> str:
        """x + constant, which is broadcast."""
        return self._noted(self.node("Add", x, constant), x=(x, lambda dy: dy))

    def times(self, x: str, constant: str) -> str:
        """x * constant, which is broadcast."""
        return self._noted(self.node("Mul", x, constant), x=(x, lambda dy: self.node("Mul", dy, constant)))

    def product(self, x: str, y: str) -> str:
        """x * y of one shape."""
        return self._noted(
            self.node("Mul", x, y),
            x=(x, lambda dz: self.node("Mul", dz, y)),
            y=(y, lambda dz: self.node("Mul", dz, x)),
        )

    def silu(self, x: str) -> str:
        """y = x * s, s = sigmoid(x); its slope is s + y * (1 - s)."""
        s = self.node("Sigmoid", x)
        y = self.node("Mul", x, s)

        def back(dy: str) -> str:
            rest = self.node("Mul", y, self.node("Sub", self.number(1.0), s))
            return self.node("Mul", dy, self.node("Add", s, rest))

        return self._noted(y, x=(x, back))

    def gelu_tanh(self, x: str) -> str:
        """y = x * h, h = (1 + t) / 2, t = tanh(c (x + 0.044715 x^3)); its slope is
        h + x (1 - t^2) / 2 * c (1 + 3 * 0.044715 x^2)."""
        half, one, c, cubic = (self.number(value) for value in (0.5, 1.0, math.sqrt(2 / math.pi), 0.044715))
        square = self.node("Mul", self.node("Mul", x, x), cubic)
        t = self.node("Tanh", self.node("Mul", self.node("Mul", x, self.node("Add", one, square)), c))
        h = self.node("Mul", self.node("Add", t, one), half)

        def back(dy: str) -> str:
            steep = self.node("Mul", self.node("Sub", one, self.node("Mul", t, t)), half)
            inner = self.node("Mul", self.node("Add", one, self.node("Mul", square, self.number(3.0))), c)
            bend = self.node("Mul", self.node("Mul", x, steep), inner)
            return self.node("Mul", dy, self.node("Add", h, bend))

        return self._noted(self.node("Mul", x, h), x=(x, back))

    def capped(self, x: str, cap: float) -> str:
        """cap * tanh(x / cap); its slope is 1 - tanh^2."""
        size = self.number(cap)
        bent = self.node("Tanh", self.node("Div", x, size))

        def back(dy: str) -> str:
            slope = self.node("Sub", self.number(1.0), self.node("Mul", bent, bent))
            return self.node("Mul", dy, slope)

        return self._noted(self.node("Mul", bent, size), x=(x, back))

    def softmax(self, x: str) -> str:
        """Over the last dimension; back: p * (dp - sum(p * dp))."""
        p = self.node("Softmax", x, axis=-1)

        def back(dp: str) -> str:
            total = self.node("ReduceSum", self.node("Mul", p, dp), self.integers(-1))
            return self.node("Mul", p, self.node("Sub", dp, total))

        return self._noted(p, x=(x, back))

    def norm(self, x: str, weight: str, epsilon: float) -> str:
        """RMSNormalization; with n = x / r, r = sqrt(mean(x^2) + epsilon), g = dy * weight: (g - n mean(g n)) / r."""

        def mean(y: str) -> str:
            return self.node("ReduceMean", y, self.integers(-1))

        def back(dy: str) -> str:
            g = self.node("Mul", dy, weight)
            r = self.node("Sqrt", self.node("Add", mean(self.node("Mul", x, x)), self.number(epsilon)))
            n = self.node("Div", x, r)
            along = self.node("Mul", n, mean(self.node("Mul", g, n)))
            return self.node("Div", self.node("Sub", g, along), r)

        return self._noted(self.node("RMSNormalization", x, weight, epsilon=epsilon), x=(x, back))

    def reshape(self, x: str, shape: str) -> str:
        """To the shape that an int64 tensor holds."""
        return self._noted(
            self.node("Reshape", x, shape), x=(x, lambda dy: self.node("Reshape", dy, self.node("Shape", x)))
        )

    def transpose(self, x: str, *order: int) -> str:
        """Dimensions in another order."""
        back = np.argsort(order).tolist()
        return self._noted(
            self.node("Transpose", x, perm=order), x=(x, lambda dy: self.node("Transpose", dy, perm=back))
        )

    def split(self, x: str, sizes: str, count: int, axis: int) -> list[str]:
        """x cut along an axis into `count` parts of sizes [count]; all must be used."""
        at = len(self.b.nodes)
        parts = [f"Split.{at}.{i}" for i in range(count)]
        self.b.several("Split", [x, sizes], parts, axis=axis)
        self._note(parts, [x], lambda dy: self.seed(x, self.node("Concat", *dy, axis=axis)))
        return parts

    def concat(self, parts: list[str], axis: int) -> str:
        """One after another."""

        def back(dz: list[str]) -> None:
            sizes = [self.node("Shape", part, start=axis, end=axis + 1) for part in parts]
            length = self.node("Concat", *sizes, axis=0)
            found = [f"Split.{len(self.b.nodes)}.{i}" for i in range(len(parts))]
            self.b.several("Split", [dz[0], length], found, axis=axis)
            for part, gradient in zip(parts, found, strict=True):
                self.seed(part, gradient)

        z = self.node("Concat", *parts, axis=axis)
        self._note([z], parts, back)
        return z

    def rows(self, x: str, rows: str) -> str:
        """Rows of x by number; one that is named twice gets both gradients."""

        def back(dy: str) -> str:
            zeros = self.node("ConstantOfShape", self.node("Shape", x))
            places = self.node("Unsqueeze", rows, self.integers(1))
            return self.node("ScatterND", zeros, places, dy, reduction="add")

        return self._noted(self.node("Gather", x, rows, axis=0), x=(x, back))
