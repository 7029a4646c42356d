//! Finds which of many literals occur where, fast: the same filter runs in the agent and in the appliance. No I/O.
