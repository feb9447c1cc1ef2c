"""Seeds in names: `x-s0` and `x-s1` are seeds of `x`."""

import re

SEED = re.compile(r"^(?P<stem>.+?)[-_.](?:s|seed)[-_]?(?P<seed>\d{1,9})$", re.IGNORECASE)
