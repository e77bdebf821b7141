"""What runs Ratchet on one machine: the demo, the doctor, background processes, env files."""
