//! Members, tokens, pools and who waits, in SQLite and in a real PostgreSQL that several
//! controllers share (needs `postgresql` and, as root, the user `postgres`).

mod copies;
mod keys;
mod pools;
mod scene;
mod shared;
mod site;
mod taken_over;
mod tpm;
