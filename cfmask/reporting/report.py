"""ShiftReport: figures and protocol, with their table, data frame and trade-off picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult

from cfmask.errors import InputError
from cfmask.evaluation.results import Results
from cfmask.reporting.front_figures import front_tables
from cfmask.reporting.rendering import Table
from cfmask.reporting.tables import FIELDS, records, spread_table, table_of


@dataclass(frozen=True)
class ShiftReport(Results):
    """The result of an evaluation: all figures of models on sets, with the protocol behind them.

    `print(report)` shows the accuracies: in a terminal as many columns as it has room for, whole
    where the output goes to a file. A notebook shows them as a table.
    """

    def table(self, metric: str = "accuracy") -> Table:
        """Models by sets: the figures of a metric, in per cent or its own unit, with intervals."""
        return table_of(self, metric)

    def spread_table(self, metric: str = "accuracy") -> Table:
        """Mean ± standard deviation over runs that differ by their seed; no rows if none do."""
        return spread_table(self, metric)

    def front_tables(self) -> list[Table]:
        """Fronts at equal in-distribution accuracy and the gaps between them, if there are any."""
        return front_tables(self)

    def frame(self) -> Any:
        """All figures as a pandas DataFrame, a row for each.

        Returns:
            Columns model, shift, metric, value (a fraction, or in the metric's own unit), low and
            high (ends of the 95 % interval), correct, total, note, and complete (whether the set
            is whole).

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise InputError(
                "Expected pandas to be installed for a frame: pip install 'cfmask[frames]'."
            ) from error
        frame = pd.DataFrame(records(self), columns=[*FIELDS, "complete"])
        return frame.astype({"correct": "Int64", "total": "Int64", "low": float, "high": float})

    def plot_trade_off(self, path: str | os.PathLike[str]) -> bool:
        """Draw accuracy in distribution against the mean under shift; see `charts.trade_off`.

        Returns:
            False if there is no reference set or nothing under shift, and so no picture.
        """
        # Matplotlib takes a second to be imported.
        from cfmask.reporting.charts import save, trade_off

        return save(trade_off(self), Path(path))

    def plot_fronts(self, path: str | os.PathLike[str]) -> bool:
        """Draw the fronts with their bands; False if there are none."""
        from cfmask.reporting.charts import fronts_alone, save

        return save(fronts_alone(self), Path(path))

    def __str__(self) -> str:
        return str(self.table())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()

    def _repr_html_(self) -> str:
        return self.table().html()
