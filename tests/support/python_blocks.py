"""Runs blocks of Python that come as lines of JSON, [line of the page, code], in one namespace.

After what a block prints comes a zero byte, and "done" or "failed".
"""

import json
import sys
import traceback
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, "")
    names: dict[str, Any] = {"__name__": "__main__"}
    for text in sys.stdin:
        line, code = json.loads(text)
        try:
            exec(compile("\n" * (line - 1) + code, "the page", "exec"), names)
            result = "done"
        except BaseException:
            traceback.print_exc()
            result = "failed"
        sys.stderr.flush()
        print(f"\0{result}", flush=True)
