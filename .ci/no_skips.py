"""`no_skips.py JUNIT.xml` fails if a test that CI can run was skipped: one that needs redis or a browser."""

import re
import sys
from xml.etree import ElementTree

NEEDED = re.compile(r"redis|browser|chromium|playwright", re.IGNORECASE)


def main(report: str) -> str | None:
    """The complaint, or None."""
    skipped: list[str] = []
    for case in ElementTree.parse(report).iter("testcase"):
        for skip in case.iter("skipped"):
            reason = f"{skip.get('message')} {skip.text}"
            if skip.get("type") == "pytest.skip" and NEEDED.search(reason):
                skipped.append(f"{case.get('classname')}.{case.get('name')}: {reason}")
    return "\n".join(["These tests must run here, but were skipped:", *skipped]) if skipped else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
