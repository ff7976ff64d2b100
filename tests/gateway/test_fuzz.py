"""No request made of /openapi.json, right, wrong or cut up, is answered otherwise than it says."""

import pytest

from gateway.openapi import codes
from tests.fuzz import Fuzz


def test_two_thousand_requests() -> None:
    fuzz = Fuzz(seed=1)
    report = fuzz.run(2000)
    assert report.num_requests >= 2000
    assert not report.failures, str(report)
    assert {status for _, status in report.statuses} >= {200, 400, 404, 429, 501}
    assert not fuzz.unserved()


def test_an_untrue_description_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(codes.CODES, "missing_required_parameter")  # type: ignore[misc]
    assert any("missing_required_parameter" in told for told in Fuzz(seed=1).run(200).failures.values())
