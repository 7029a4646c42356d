//! Signed lists of known content: built, verified, mapped, looked up.
