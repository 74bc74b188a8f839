"""Imported by any Python that has this directory on PYTHONPATH: makes the library that verifies signatures fail.

It fails while the file that ROWS_BREAK_VERIFIER names exists. Nothing of the product is touched.
"""

import os

_SWITCH = os.environ.get("ROWS_BREAK_VERIFIER")

if _SWITCH:
    from awscrt import crypto

    _new_key = crypto.EC.new_key_from_der_data

    class _Breakable:
        def __init__(self, key):
            self._key = key

        def verify(self, *arguments):
            if os.path.exists(_SWITCH):  # noqa: PTH110 - the cheapest question, asked for each signature
                raise RuntimeError("the verifier is broken")
            return self._key.verify(*arguments)

    crypto.EC.new_key_from_der_data = staticmethod(lambda data: _Breakable(_new_key(data)))
