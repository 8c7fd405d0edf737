"""`make test-page`: the page of `--metrics` in Chromium."""
