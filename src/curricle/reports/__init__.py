"""Summaries, tables, figures and pages, made from records alone."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.reports.figures import learning_figure as learning_figure
    from curricle.reports.figures import loss_figure as loss_figure
    from curricle.reports.figures import metrics_figure as metrics_figure
    from curricle.reports.page import write_page as write_page
    from curricle.reports.printed import save_learning_curves as save_learning_curves
    from curricle.reports.run_folders import Run as Run
    from curricle.reports.run_folders import load_runs as load_runs
    from curricle.reports.summary import Summary as Summary
    from curricle.reports.summary import summarize as summarize
    from curricle.reports.summary import write_summary as write_summary
    from curricle.reports.tables import summary_markdown as summary_markdown
    from curricle.reports.tables import summary_table as summary_table
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "figures": ("learning_figure", "loss_figure", "metrics_figure"),
            "page": ("write_page",),
            "printed": ("save_learning_curves",),
            "run_folders": ("Run", "load_runs"),
            "summary": ("Summary", "summarize", "write_summary"),
            "tables": ("summary_markdown", "summary_table"),
        },
    )
