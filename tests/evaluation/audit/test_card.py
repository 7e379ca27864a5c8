"""The card says the same in Markdown and JSON, and its verdict names alarms and traces."""

import json
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from fakeface_lab.evaluation.audit.audit import AuditSettings, audit
from fakeface_lab.evaluation.audit.card import Finding
from tests.evaluation.audit.audit_inputs import found, inputs_of, portraits


def test_card_says_what_confirmed_means() -> None:
    inputs = inputs_of(*portraits(10, num_images=20), with_probes=False)
    page = audit(inputs, AuditSettings(min_correlation=0.85)).to_markdown()
    assert "pHash at most 10 of 64 bits apart, and details that correlate by 0.85 or more. Details are the gray" in page


def test_a_trace_of_processing_is_in_the_verdict() -> None:
    images, labels = portraits(12, num_images=120)
    for row in np.flatnonzero(labels == 0):
        images[row] = np.asarray(Image.fromarray(images[row]).filter(ImageFilter.GaussianBlur(1.0)))
    card = audit(inputs_of(images, labels))
    (finding,) = found(card, "trace")
    assert finding.severity == "info"
    best = max((probe for probe in card.probes if probe.kind == "forensic"), key=lambda probe: probe.auc)
    assert finding.evidence["probe"] == best.name
    says = f"A trace of processing separates the classes ({best.name} probe right on {best.accuracy.value:.3f}"
    assert card.verdict.startswith(says)
    assert "): forgery, or the way the two sources were saved; this data cannot say which." in card.verdict
    assert "Nothing else was found that gives the label away: the best of 5 shortcut probes" in card.verdict
    assert card.worst == "info"
    alarmed = replace(card, findings=[Finding("warn", "slice", "Alarm.", {}, 0.1), finding])
    assert alarmed.verdict == f"Alarm. {finding.sentence}"


def test_markdown_and_json_say_the_same() -> None:
    images, labels = portraits(4)
    images[labels == 0, -9:-3, -18:-3] = 235
    card = audit(inputs_of(images, labels))
    page, content = card.to_markdown(), json.loads(card.to_json())
    assert content["verdict"] == card.verdict
    assert card.verdict in page
    assert content["worst"] == "fail"
    assert content["counts"] == {"fake": 100, "real": 100}
    assert [entry["sentence"] for entry in content["findings"]] == [f.sentence for f in card.findings]
    assert all(finding.sentence in page for finding in card.findings)
    assert all(f"| {probe.name} | {probe.kind} |" in page for probe in card.probes)
    assert content["settings"]["fail_auc"] == 0.9
    assert [entry["severity"] for entry in content["findings"]] == sorted(
        (entry["severity"] for entry in content["findings"]), key=["fail", "warn", "info"].index
    )


def test_a_card_without_probes_says_so() -> None:
    inputs = inputs_of(*portraits(10, num_images=20), with_probes=False)
    assert audit(inputs).verdict.endswith("but no probe was run.")
    assert "| probe | kind |" in audit(inputs).to_markdown()
