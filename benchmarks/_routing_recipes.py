"""Routers of rising cost for the frontier of APGR against latency: recipes as `classifiers.evaluation` takes them.

They regress gain = refine_right - draft_right by least squares. PGR sums gain over the requests sent, so no ranking recovers
more than E[gain | prompt]; a model of "needed" alone forgets where the refiner breaks what was right.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import clone
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from classifiers.evaluation import Recipe, Scorer, prompt_text
from classifiers.outcomes import Outcome

TOKENS = r"\w+|[^\w\s]"
COUNTED = tuple(
    re.compile(pattern)
    for pattern in (
        *(re.escape(sign) for sign in ("%", "$", "/", "=", "(", '"', ",", "?", "\n", "_")),
        r"[\^\\]", r"[.!?]\s", r"\b[A-Z]", r"[^\x00-\x7f]", r"\d\.\d", r"\d{3}",
        r"(?i)\b(?:not|except|least|false|incorrect|never)\b",
        r"(?i)\b(?:all|both|none|neither|only)\b",
        r"(?i)\b(?:statements?|i|ii|iii|iv)\b",
        r"(?i)\b(?:half|twice|third|quarter|double|triple|times|percent|fraction|ratio)\b",
        r"(?i)\b(?:more|less|fewer|than|remaining|rest|left|each|every|per|total|average)\b",
        r"(?i)\b(?:if|when|after|before|then|until|while)\b",
        r"(?i)\b(?:seconds?|minutes?|hours?|days?|weeks?|months?|years?)\b",
        r"(?i)\b(?:which|what|who|where|why|how)\b",
    )
)  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPTION = re.compile(r"\n[A-Z][.)] (.*)")


def counts(texts: Sequence[str]) -> NDArray[np.float64]:
    """(n, F): log(1 + n) of marks, lengths, numbers and answer options of each text."""
    return np.log1p([_counts(text) for text in texts])


def _counts(text: str) -> list[float]:
    words, numbers = _WORD.findall(text), _NUMBER.findall(text)
    lengths = [len(word) for word in words] or [0]
    options = [len(option) for option in _OPTION.findall(text)] or [0]
    return [
        *(len(pattern.findall(text)) for pattern in COUNTED),
        len(text),
        len(text.split("\nA", 1)[0]),  # the question without its options
        len(words),
        len(set(words)),
        float(np.mean(lengths)),
        max(lengths),
        len(numbers),
        len(set(numbers)),
        max((len(number) for number in numbers), default=0),
        len(options),
        max(options),
        min(options),
        float(np.mean(options)),
        float(np.std(options)),
    ]


def recipe(*models: Pipeline) -> Recipe:
    """The mean of regressions over texts, as a recipe. Gains are centred in each source: what tells sources apart is no
    difficulty within one.
    """

    def fit(train: Sequence[Outcome]) -> Scorer:
        texts, gain = [prompt_text(outcome) for outcome in train], _centred_gain(train)
        fitted: list[Any] = [clone(model) for model in models]
        for model in fitted:
            model.fit(texts, gain)
        return lambda rows: np.mean([model.predict(list(map(prompt_text, rows))) for model in fitted], axis=0)

    return fit


def _centred_gain(train: Sequence[Outcome]) -> NDArray[np.float64]:
    gain = np.array([float(bool(outcome.refine_right)) - outcome.draft_right for outcome in train])
    _, source, sizes = np.unique([outcome.source for outcome in train], return_inverse=True, return_counts=True)
    return gain - (np.bincount(source, gain) / sizes)[source]


def _length(_train: Sequence[Outcome]) -> Scorer:
    return lambda rows: np.array([float(len(prompt_text(outcome))) for outcome in rows])


def _scaled(weight: float) -> Pipeline:
    """Counts beside rows of n-grams whose norm is 1: `weight` keeps them from drowning those."""
    return make_pipeline(
        FunctionTransformer(counts), StandardScaler(), FunctionTransformer(_times, kw_args={"by": weight})
    )


def _times(x: NDArray, by: float) -> Any:
    return sparse.csr_matrix(by * x)


def _hashed(columns: int) -> HashingVectorizer:
    return HashingVectorizer(n_features=columns, ngram_range=(1, 2), token_pattern=TOKENS, alternate_sign=False)


def _words() -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=TOKENS)


def _characters() -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=3, sublinear_tf=True)


def _ridge(alpha: float) -> Ridge:
    return Ridge(alpha, solver="sparse_cg", tol=1e-3)


def _linear(grams: Any) -> Pipeline:
    return make_pipeline(make_union(grams, _scaled(0.05)), _ridge(10.0))


def _dense() -> FeatureUnion:
    """Counts and 60 directions of words and pairs, for trees."""
    return make_union(FunctionTransformer(counts), make_pipeline(_words(), TruncatedSVD(60, random_state=0)))


def _boosted() -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(
        max_leaf_nodes=8, max_iter=150, learning_rate=0.05, min_samples_leaf=30,
        l2_regularization=5.0, max_features=0.3, random_state=0,
    )  # fmt: skip


def _trees() -> ExtraTreesRegressor:
    return ExtraTreesRegressor(100, min_samples_leaf=15, max_features=0.4, random_state=0)


_GRAMS = FeatureUnion(
    [("words", _words()), ("characters", _characters()), ("counts", _scaled(0.05))],
    transformer_weights={"characters": 0.7},
)
_COUNTS_BOOSTED = make_pipeline(FunctionTransformer(counts), _boosted())
_GRAMS_LINEAR = make_pipeline(_GRAMS, _ridge(20.0))
_DENSE_TREES = make_pipeline(_dense(), _trees())
BEST = "linear, boosted and trees"
RECIPES: dict[str, Recipe] = {
    "length": _length,
    "counts, linear": recipe(make_pipeline(FunctionTransformer(counts), StandardScaler(), Ridge(alpha=100.0))),
    "counts, boosted": recipe(_COUNTS_BOOSTED),
    "hashed 2^12, linear": recipe(_linear(_hashed(2**12))),
    "hashed 2^18, linear": recipe(_linear(_hashed(2**18))),
    "TF-IDF words, linear": recipe(_linear(_words())),
    "TF-IDF words and characters, linear": recipe(_GRAMS_LINEAR),
    "TF-IDF SVD, boosted": recipe(make_pipeline(_dense(), _boosted())),
    "TF-IDF SVD, trees": recipe(_DENSE_TREES),
    BEST: recipe(_GRAMS_LINEAR, _COUNTS_BOOSTED, _DENSE_TREES),
}
