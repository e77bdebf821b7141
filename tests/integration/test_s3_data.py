"""Data on S3, read from a real S3 API (rclone's, as the stack does offline)."""

import pytest

pytestmark = pytest.mark.integration
