"""Every error codeword raises on purpose. Imports nothing, so that readers and the command line can use it without torch.

One sentence each: what was wrong, the value received, what is allowed.
"""


class CodewordError(ValueError):
    """Root of all errors a caller can cause; a ``ValueError`` so that generic callers catch it too."""


class NotFitted(CodewordError):
    """The quantizer learns from data and has not seen any yet: call ``fit`` first."""


class ShapeError(CodewordError):
    """An array has the wrong shape, width, dtype or non-finite values."""


class Unsupported(CodewordError):
    """The request is legal but this object cannot do it; the message says which one can."""


class FormatError(CodewordError):
    """A file is truncated, corrupted, hostile, or of another kind. ``code`` is one of ``FORMAT_CODES``."""

    def __init__(self, code: str, message: str):
        assert code in FORMAT_CODES, code
        super().__init__(f"{message} [{code}]")
        self.code = code


# A closed list: a reader may not invent a code, and a test asserts that fuzzing never reaches "internal".
FORMAT_CODES = frozenset({
    "empty",          # no bytes at all
    "magic",          # not this kind of file
    "truncated",      # fewer bytes than the header declares
    "trailing",       # more bytes than the header declares
    "header",         # header length, encoding or JSON is malformed
    "duplicate",      # a JSON key or tensor name stands twice
    "unknown-key",    # a field this version does not know
    "missing-key",    # a field this version needs
    "version",        # written by a release this one cannot read
    "name",           # the catalog has no such object, or a path is not a plain file name
    "config",         # the configuration is refused by the constructor
    "dtype",          # a tensor has a dtype the format does not hold, or not the declared one
    "shape",          # a tensor has another shape than the configuration implies
    "layout",         # offsets overlap, leave holes, descend or are unaligned
    "digest",         # bytes differ from their recorded digest
    "fingerprint",    # a right file with the wrong partner
    "value",          # stored values are impossible (NaN in a codebook, an index out of range, ...)
    "limit",          # larger than the limits allow
    "kind",           # a valid file of another kind of object
    "file",           # not a regular file, or it cannot be read
    "internal",       # a bug in a reader; never expected
})
