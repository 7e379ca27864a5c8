"""Inputs for tests of the audit: drawn portraits, probes with given scores, tables with one revealing property."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from fakeface_lab.data.properties import CONTENT_COLUMNS, file_properties, pixel_properties
from fakeface_lab.data.splits import closest_pairs, detail_correlations, perceptual_hashes, pixel_digests
from fakeface_lab.evaluation.audit.audit import AuditInputs, Card
from fakeface_lab.evaluation.audit.card import Finding
from fakeface_lab.evaluation.audit.probes import ProbeResult, run_probes, stratified_folds
from fakeface_lab.evaluation.intervals import wilson

Pictures = NDArray[np.uint8]
Labels = NDArray[np.int64]
SIZE_PX = 96


def portrait(rng: np.random.Generator, scale: float = 1.0) -> Pictures:
    """A face with a random skin colour, roughly centred, in front of a blurred background."""
    ground = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((SIZE_PX, SIZE_PX))
    rows, columns = np.indices((SIZE_PX, SIZE_PX)) / SIZE_PX - 0.5 + rng.normal(0, 0.03, (2, 1, 1))
    width, height = 0.26 * scale * rng.normal(1, 0.05), 0.34 * scale * rng.normal(1, 0.05)
    is_face = (columns / width) ** 2 + (rows / height) ** 2 < 1
    light = Image.fromarray(rng.uniform(0.3, 1.2, (3, 3))).resize((SIZE_PX, SIZE_PX))
    skin = np.array([215, 170, 140]) * np.asarray(light)[..., None]
    pixels = np.where(is_face[..., None], skin, np.asarray(ground)) + rng.normal(0, 4, (SIZE_PX, SIZE_PX, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def portraits(seed: int, num_images: int = 200, fake_scale: float = 1.0) -> tuple[Pictures, Labels]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(num_images) % 2).astype(np.int64)
    return np.stack([portrait(rng, fake_scale if label == 0 else 1.0) for label in labels]), labels


def inputs_of(
    images: Pictures,
    labels: Labels,
    files: list[Path] | None = None,
    splits: list[str] | None = None,
    file_digests: list[str] | None = None,
    with_probes: bool = True,
) -> AuditInputs:
    digests = pixel_digests(images)
    properties = pixel_properties(images)
    if files is not None:
        properties = pd.concat([file_properties(files), properties], axis=1)
    folds = stratified_folds(labels, np.unique(digests, return_inverse=True)[1])
    pairs = closest_pairs(perceptual_hashes(images))
    content = [column for column in CONTENT_COLUMNS if column in properties]
    return AuditInputs(
        names=[f"{i}.jpg" for i in range(len(labels))],
        labels=labels,
        class_names=("fake", "real"),
        properties=properties,
        pairs=pairs.assign(correlation=detail_correlations(images, pairs)),
        probes=run_probes(images, properties.drop(columns=content), labels, folds) if with_probes else [],
        file_digests=file_digests or [f"file {i}" for i in range(len(labels))],
        pixel_digests=digests,
        splits=splits,
        content_columns=content,
    )


def found(card: Card, check: str, **evidence: object) -> list[Finding]:
    return [
        finding
        for finding in card.findings
        if finding.check == check and all(finding.evidence.get(k) == v for k, v in evidence.items())
    ]


def alarms(card: Card) -> list[str]:
    return [finding.sentence for finding in card.findings if finding.severity != "info"]


def alike_pairs(correlation: float, step: int, bits: int = 8) -> pd.DataFrame:
    """Twenty pairs of images `step` positions apart; an odd step pairs a fake with a real one."""
    first = np.arange(0, 40, 2)
    return pd.DataFrame(
        {"first": first, "second": first + step, "phash_bits": bits, "is_mirrored": False, "correlation": correlation}
    )


def probe_of(
    scores: NDArray[np.float64], labels: Labels, name: str = "thumbnail", kind: str = "shortcut"
) -> ProbeResult:
    """A probe with these scores, as `run_probes` would report it."""
    is_positive = labels == 0
    accuracy = wilson(int(((scores > 0.5) == is_positive).sum()), len(scores))
    return ProbeResult(name, kind, "something", accuracy, roc_auc_score(is_positive, scores), scores)  # type: ignore[arg-type]


def without_probes(num_images: int) -> AuditInputs:
    images, labels = portraits(11, num_images=num_images)
    return inputs_of(images, labels, with_probes=False)


def with_property(values: list[object], labels: Labels, others: int = 0) -> AuditInputs:
    """Inputs with one revealing property, and others that each have two values, equally often in both classes."""
    blind = {f"blind_{number}": np.arange(len(labels)) // 2 % 2 == 0 for number in range(others)}
    table = pd.DataFrame({"format": values, **blind})
    return AuditInputs(
        names=[f"{row}.jpg" for row in range(len(labels))],
        labels=labels,
        class_names=("fake", "real"),
        properties=table,
        pairs=alike_pairs(0.0, 1).head(0),
        probes=[],
        file_digests=[f"file {row}" for row in range(len(labels))],
        pixel_digests=[f"pixels {row}" for row in range(len(labels))],
    )
