"""Commands that check and show: verify, claims, bench, report, demo."""
