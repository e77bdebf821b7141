# The secrets that start.sh writes to /opt/ratchet/.secrets. Their values go from AWS to AWS: the random text is
# ephemeral and the argument that takes it is write-only, so neither plan nor state holds it.

locals {
  passwords = {
    mlflow_admin_password = { length = 32, text = "%s" }
    mlflow_secret_key     = { length = 64, text = "%s" }
    serving_token         = { length = 43, text = "rt-%s" }
    trainer_credentials   = { length = 32, text = "[mlflow]\nmlflow_tracking_username = trainer\nmlflow_tracking_password = %s\n" }
    promoter_credentials  = { length = 32, text = "[mlflow]\nmlflow_tracking_username = promoter\nmlflow_tracking_password = %s\n" }
    serving_credentials   = { length = 32, text = "[mlflow]\nmlflow_tracking_username = serving\nmlflow_tracking_password = %s\n" }
  }

  # These count at the platform's first start alone; how they are changed: README.md.
  once = ["mlflow_admin_password", "serving_token"]

  # 0 leaves the values to somebody else, and asks AWS for nothing at the plan: so do the tests.
  written = var.secrets_version == 0 ? {} : local.passwords
}

resource "aws_secretsmanager_secret" "main" {
  #checkov:skip=CKV2_AWS_57: A new value has to reach the host's files and MLflow's accounts, which start.sh does; raise secrets_version.
  for_each = local.passwords

  name                    = "${var.name}/${each.key}"
  description             = "Ratchet: the file ${each.key} in /opt/ratchet/.secrets"
  kms_key_id              = aws_kms_key.main.arn
  recovery_window_in_days = 7
}

ephemeral "aws_secretsmanager_random_password" "main" {
  provider = aws.ephemeral
  for_each = local.written

  password_length     = each.value.length
  exclude_punctuation = true # they stand in an INI file and in HTTP headers
}

resource "aws_secretsmanager_secret_version" "main" {
  for_each = local.written

  secret_id                = aws_secretsmanager_secret.main[each.key].id
  secret_string_wo         = format(each.value.text, ephemeral.aws_secretsmanager_random_password.main[each.key].random_password)
  secret_string_wo_version = contains(local.once, each.key) ? 1 : var.secrets_version
}
