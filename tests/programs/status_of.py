"""`clb-discovery status` of a document in a file, read again each time: `status_of.py FILE OPTION...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import patch

from clb_discovery.cli.main import main

if __name__ == "__main__":
    _, file, *options = sys.argv
    with patch("clb_discovery.cli.status.read_status", lambda _: json.loads(Path(file).read_text())):
        sys.exit(main(["status", *options]))
