"""The script that compares insert rates runs; what it finds is not judged here."""

from __future__ import annotations

import json

from tests.benchmarks.adapters import main


def test_the_script_prints_a_table_and_writes_its_figures(tmp_path, capsys):
    target = tmp_path / "figures.json"
    main(["sqlite", "--sizes", "10", "20", "--rounds", "1", "--json", str(target)])
    figures = json.loads(target.read_text())
    assert [(figure["adapter"], figure["batch"]) for figure in figures] == [
        ("sqlite", 10),
        ("sqlite", 20),
    ]
    assert all(figure["rows_per_s"] > 0 and figure["bare_rows_per_s"] > 0 for figure in figures)
    assert len(capsys.readouterr().out.splitlines()) == 3
