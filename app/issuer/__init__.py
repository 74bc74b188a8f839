"""Issuing: signing keys and their rotation, the public JWK Set, and trigger tokens. Private keys never leave it."""
