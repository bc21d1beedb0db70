"""A forest of decision trees: as arrays to store, and laid out to be walked by one row at a time."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Forest(NamedTuple):
    """N nodes of T trees. From a node, x goes on to children[node, int(x[feature] <= threshold)]; a leaf is its own children.

    Children stand behind their parents, so every walk ends.
    """

    feature: NDArray[np.int32]  # (N,)
    threshold: NDArray[np.float32]  # (N,)
    children: NDArray[np.int32]  # (N, 2): where x is above the threshold, and where it is not
    value: NDArray[np.float32]  # (N,), of a leaf
    roots: NDArray[np.int32]  # (T,)

    def checked(self, features: int) -> "Forest":
        """The forest, if it can be walked with this many features. Raises ValueError."""
        nodes, trees = self.feature.size, self.roots.size
        shapes = {
            "feature": (nodes,),
            "threshold": (nodes,),
            "children": (nodes, 2),
            "value": (nodes,),
            "roots": (trees,),
        }
        for name, part in self._asdict().items():
            dtype = np.float32 if name in ("threshold", "value") else np.int32
            if part.shape != shapes[name] or part.dtype != dtype or not part.size:
                raise ValueError(f"expected {name} {shapes[name]} {dtype.__name__}, got {part.shape} {part.dtype}")
        if not (_within(self.feature, features) and _within(self.roots, nodes) and _within(self.children, nodes)):
            raise ValueError(f"expected features below {features} and nodes below {nodes}, got others")
        own = np.arange(nodes)[:, None]
        if not ((self.children == own).all(axis=1) | (self.children > own).all(axis=1)).all():
            raise ValueError("expected each node to be a leaf or to stand before its children, got another order")
        return self


class Walker:
    """A forest in which all trees step down together.

    Inner nodes stand first, so that one comparison of all of them says for each where it leads; then a step is one look-up for
    all trees. For 300 trees of a few dozen nodes that takes half the time of comparing at each step anew.
    """

    def __init__(self, forest: Forest) -> None:
        """Take a forest that has been `checked`."""
        own = np.arange(forest.feature.size)
        leaf = forest.children[:, 0] == own
        order = np.argsort(leaf, kind="stable")
        place = np.empty_like(own)
        place[order] = own
        inner = order[: np.count_nonzero(~leaf)]
        self._feature = forest.feature[inner].astype(np.intp)
        self._threshold = forest.threshold[inner]
        self._children = place[forest.children[inner]].reshape(-1)
        self._pairs = 2 * own[: len(inner)]
        self._leaves = own[len(inner) :]
        self._value = forest.value[order]
        self._roots = place[forest.roots]
        self._depth = 0
        reached = np.unique(self._roots)
        while (reached := reached[reached < len(inner)]).size:
            self._depth += 1
            reached = np.unique(self._children.reshape(-1, 2)[reached])

    def mean(self, x: NDArray[np.float32]) -> float:
        """The mean value over all trees of the leaf that x, (F,), comes to."""
        below = x.take(self._feature) <= self._threshold
        following = np.concatenate([self._children.take(self._pairs + below), self._leaves])  # a leaf leads to itself
        at = self._roots
        for _ in range(self._depth):
            at = following[at]
        return float(self._value.take(at).mean())


def _within(indices: NDArray[np.int32], end: int) -> bool:
    return bool(((indices >= 0) & (indices < end)).all())
