from preba.report.comparison import ComparisonEntry
def render_html(result, context, summary): return ""
def render_comparison_html(entries, title=""): return ""
