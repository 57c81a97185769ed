"""Names of scores and axes in figures and tables, and the form of their values."""

import math
import re
from collections.abc import Sequence

_SCORES = {
    "linear": "linear",
    "linear_sgd": "SGD linear",
    "finetune": "fine-tuned",
    "knn": "k-NN",
    "few_label": "5 labels a class",
    "online": "online probe",
    "probe": "online probe",
    "rankme": "RankMe",
    "lidar": "LiDAR",
    "alpha_req": "α-ReQ",
    "columns_fourth_over_bound": "fourth norms of dimensions / lower bound",
    "rows_fourth_over_bound": "fourth norms of samples / lower bound",
    "cosine_mean": "mean cosine of different samples",
    "cosine_variance": "d times the variance of the cosines",
    "column_fourth_ratio": "fourth norms of dimensions / lower bound",
    "row_fourth_ratio": "fourth norms of samples / lower bound",
    "gram_dominance": "diagonal dominance of the Gram matrix",
    "covariance_dominance": "diagonal dominance of the covariance",
    "d": "embedding dimension d",
    "parameters.projector": "projector parameters",
    "parameters.backbone": "backbone parameters",
    "gram": "off-diagonal entry of the Gram matrix",
    "covariance": "off-diagonal entry of the covariance matrix",
}
_PATTERNS = (  # of accuracies; a number stands in the name
    (r"knn(\d+)", "{}-NN"),
    (r"labels(\d+)", "{} labels a class"),
    (r"percent(\d+)", "{} % of labels"),
)
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def is_accuracy(score: str) -> bool:
    """Say whether a score is a fraction of correct answers, which is shown in percent."""
    return score.endswith(("_top1", "_top5"))


def heading(name: str) -> str:
    """Return the short name of a score or an axis, as in the head of a table."""
    stem = re.sub(r"^(val|train|duality|data|model|trainer)[/.]|_top[15]$", "", name)
    if stem.endswith("_features"):
        return f"{heading(stem.removesuffix('_features'))} of features"
    for pattern, text in _PATTERNS:
        if found := re.fullmatch(pattern, stem):
            return text.format(found[1]).replace("1 labels", "1 label")
    return _SCORES.get(stem, stem.replace("_", " "))


def subject(name: str) -> str:
    """Return the name of a score or an axis in a sentence."""
    short = heading(name)
    if not is_accuracy(name):
        return short
    return f"accuracy with {short}" if "label" in short else f"{short} accuracy"


def axis_title(name: str) -> str:
    """Return the name of a score or an axis beside its scale, with its unit."""
    return capitalized(subject(name)) + " (%)" * is_accuracy(name)


def capitalized(text: str) -> str:
    """Return a text with a capital first letter, unless a single letter or a symbol begins it."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]{2}", text) and text[1] != "-" else text


def listed(words: Sequence[str]) -> str:
    """Return words as in a sentence: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1])] * (len(words) > 1) + [*words[-1:]])


def label(value: object) -> str:
    """Return the label of a cell's value: without the braces of a template such as ``{d}-{d}``."""
    return re.sub(r"[{}]", "", str(value))


def slug(text: str) -> str:
    """Return a text as part of a file name."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")


def mean_and_std(score: str, mean: float, std: float, n: int) -> str:
    """Format a mean, and its standard deviation with the same decimals if there are values."""
    size = math.floor(math.log10(abs(mean))) if mean else 0
    if not is_accuracy(score) and not -4 < size < 6:
        return f"{significant(mean)} ± {significant(std)}" if n > 1 else significant(mean)
    decimals = 1 if is_accuracy(score) else max(0, 2 - size)
    return " ± ".join(fixed(value, decimals) for value in (mean, std)[: 1 + (n > 1)])


def fixed(value: float, decimals: int) -> str:
    """Format with a number of decimals, separated thousands and a minus sign."""
    return f"{value:,.{decimals}f}".replace("-", "−")


def significant(value: float, digits: int = 3) -> str:
    """Format with a number of significant digits, with a power of ten beyond 0.001 and 1e6."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 < exponent < 6:
        return fixed(value, max(0, digits - 1 - exponent))
    return f"{fixed(value / 10.0**exponent, digits - 1)}·{power_of_ten(exponent)}"


def compact(value: float) -> str:
    """Format the tick of a logarithmic axis: ``0.01``, ``500``, ``20k``, ``5M``, ``10⁻⁶``."""
    exponent = math.floor(math.log10(value) + 1e-9)
    if not -3 < exponent < 9:
        mantissa = round(value / 10.0**exponent)
        return f"{mantissa}·{power_of_ten(exponent)}" if mantissa > 1 else power_of_ten(exponent)
    if value >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    thousands = value >= 10_000 or (value >= 1000 and value % 1000 == 0)
    return f"{value / 1000:g}k" if thousands else f"{value:,g}"


def power_of_ten(exponent: int) -> str:
    """Return a power of ten, such as ``10⁻⁴``."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)
