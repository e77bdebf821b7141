# The bucket for artifacts, and the key that encrypts everything made here: bucket, database, disk, secrets, logs.

locals {
  bucket = coalesce(var.bucket_name, "${var.name}-${local.account}-${var.region}")
  prefix = "artifacts" # the tracking server's objects lie below it, and no role of ours reaches any others
}

resource "aws_kms_key" "main" {
  description             = "Ratchet (${var.name}): bucket, database, disk, secrets, logs"
  enable_key_rotation     = true
  deletion_window_in_days = 30
}

resource "aws_kms_key_policy" "main" {
  key_id = aws_kms_key.main.id
  policy = templatefile("${path.module}/policies/key.json.tftpl", {
    account   = local.account
    name      = var.name
    partition = local.partition
    region    = var.region
  })
}

resource "aws_kms_alias" "main" {
  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.main.id
}

resource "aws_s3_bucket" "artifacts" {
  #checkov:skip=CKV_AWS_144: A copy in another region doubles the price of every model; versions guard against deletion.
  #checkov:skip=CKV2_AWS_62: Nothing here acts on an object's arrival; the tracking server knows what it wrote.
  bucket = local.bucket
}

resource "aws_s3_bucket_versioning" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  rule {
    bucket_key_enabled = true # one call to KMS for many objects

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.main.arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "artifacts" {
  bucket                  = aws_s3_bucket.artifacts.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_policy" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id
  policy = templatefile("${path.module}/policies/bucket.json.tftpl", {
    bucket_arn = aws_s3_bucket.artifacts.arn
    key_arn    = aws_kms_key.main.arn
  })

  depends_on = [aws_s3_bucket_public_access_block.artifacts] # S3 refuses two changes at once
}

resource "aws_s3_bucket_lifecycle_configuration" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  rule {
    id     = "uploads"
    status = "Enabled"
    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }

  rule {
    id     = "versions"
    status = "Enabled"
    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }

    expiration {
      expired_object_delete_marker = true # what a deletion leaves behind once its versions are gone
    }
  }

  depends_on = [aws_s3_bucket_versioning.artifacts]
}

resource "aws_s3_bucket_logging" "artifacts" {
  count = var.access_logs_bucket == null ? 0 : 1

  bucket        = aws_s3_bucket.artifacts.id
  target_bucket = var.access_logs_bucket
  target_prefix = "${local.bucket}/"
}
