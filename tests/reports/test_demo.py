"""The two questions that `curate demo` answers at its end. The commands that it runs are tested where they are."""

from __future__ import annotations

import duckdb
from curate.reports.demo import LEARNABILITY, QUERIES

# (key, loss, noisy label, clean label): the more a label is wrong, the higher its loss.
EXAMPLES = [(str(i), 1 / (40 - i), i % 7, i % 7 + (i > 29)) for i in range(37)]


def test_the_answers_are_rounded_for_people():
    connection = duckdb.connect()
    connection.execute("CREATE TABLE scores (dataset TEXT, shard TEXT, key TEXT, loss FLOAT)")
    connection.execute("CREATE TABLE analysis (dataset TEXT, shard TEXT, key TEXT, worse_label INT, clean_label INT)")
    connection.execute(
        "CREATE TABLE selections (run TEXT, shard TEXT, key TEXT, online_loss FLOAT, reference_loss FLOAT, selected BOOL)"
    )
    for key, loss, noisy, clean in EXAMPLES:
        connection.execute("INSERT INTO scores VALUES ('cifar10n', 's', ?, ?)", [key, loss])
        connection.execute("INSERT INTO analysis VALUES ('cifar10n', 's', ?, ?, ?)", [key, noisy, clean])
        row = [str(LEARNABILITY), key, loss, loss / 3, noisy == clean]
        connection.execute("INSERT INTO selections VALUES (?, 's', ?, ?, ?, ?)", row)
    deciles, chosen = (connection.execute(sql).fetchall() for _, sql in QUERIES)
    assert [decile for decile, *_ in deciles] == list(range(1, 11))
    assert [share for *_, share in deciles] == [0.0] * 7 + [0.333, 1.0, 1.0]
    assert [row[:3] for row in chosen] == [(False, 7, 1.0), (True, 30, 0.0)]
    numbers = [value for row in (*deciles, *chosen) for value in row if isinstance(value, float)]
    assert numbers and all(value == round(value, 3) for value in numbers)
