"""A forest of decision trees as arrays, in which all trees step down together."""

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

    def mean(self, x: NDArray[np.float32]) -> float:
        """The mean value over all trees of the leaf that x, (F,), comes to."""
        children, at = self.children.reshape(-1), self.roots
        while True:
            below = children.take(2 * at + (x.take(self.feature.take(at)) <= self.threshold.take(at)))
            if (below == at).all():
                return float(self.value.take(at).mean())
            at = below

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


def _within(indices: NDArray[np.int32], end: int) -> bool:
    return bool(((indices >= 0) & (indices < end)).all())
