//! Compiles YARA rules into what of a file can still change their verdict. No I/O.
