"""The part of the report that says what `dunwu doctor RUN` finds: each pathology with figure, place and cure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dunwu.eval.course import read_courses
from dunwu.eval.pathology import PATHOLOGIES, examine
from dunwu.eval.report_parts import clip, heading, note, safe, table

_CHINESE = {pathology.name: pathology.chinese for pathology in PATHOLOGIES}


def consult(run_dir: Path, stage: str = "") -> dict[str, Any]:
    """`{"stages": judged stages, "healthy": bool, "findings": [Finding as an object, …]}` of a run folder.

    Raises:
        DunwuError: no run folder, or no such stage.
    """
    courses = read_courses(run_dir, stage)
    findings = examine(courses)
    judged = [course.stage for course in courses]
    return clip({"stages": judged, "healthy": not findings, "findings": [f.as_json() for f in findings]})  # type: ignore[no-any-return]


def doctor_section(data: Mapping[str, Any]) -> str:
    """HTML of `data["doctor"]`; "" where no stage learned by reinforcement."""
    found = data.get("doctor") or {}
    if not found.get("stages"):
        return ""
    head = heading("What the doctor finds", "诊断")
    if found["healthy"]:
        return head + note(
            f"No pathology in {', '.join(found['stages'])}: entropy, length, groups, sampler, reward, weights."
        )
    rows = [
        [
            f'{safe(f["pathology"])} <span lang="zh">{safe(_CHINESE.get(f["pathology"], ""))}</span>',
            f"{safe(f['stage'])}, {f['first_step']} – {f['last_step']}",
            safe(f["what"]),
            safe(f["cure"]),
        ]
        for f in found["findings"]
    ]
    return head + table(["pathology", "stage, steps", "sign", "what treats it"], rows)
