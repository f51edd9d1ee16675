"""Tables of metrics, the HTML report, and the demo."""
