"""The loop: notices that code has moved, and starts trainer, promoter and monitor, as far as it was allowed to."""
