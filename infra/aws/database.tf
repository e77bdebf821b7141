# RDS PostgreSQL. Ratchet enters as `ratchet`, with IAM's tokens; the master user's password is kept and changed by RDS,
# and used once, by start.sh, to make that user.

locals {
  database_user = "ratchet"
  database_logs = ["postgresql", "upgrade"]
}

resource "aws_db_subnet_group" "main" {
  name_prefix = "${var.name}-"
  description = "Ratchet database"
  subnet_ids  = local.database_subnet_ids
}

resource "aws_db_parameter_group" "main" {
  name_prefix = "${var.name}-"
  description = "Ratchet database"
  family      = "postgres17"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  # Changes of the schema, and what takes longer than a second (ms). Not every statement: they hold people's prompts.
  parameter {
    name  = "log_statement"
    value = "ddl"
  }

  parameter {
    name  = "log_min_duration_statement"
    value = "1000"
  }

  lifecycle {
    create_before_destroy = true
  }
}

# RDS would make these itself, unencrypted and for ever.
resource "aws_cloudwatch_log_group" "database" {
  for_each = toset(local.database_logs)

  name              = "/aws/rds/instance/${var.name}/${each.key}"
  retention_in_days = var.log_days
  kms_key_id        = aws_kms_key.main.arn

  depends_on = [aws_kms_key_policy.main]
}

resource "aws_db_instance" "main" {
  identifier     = var.name
  engine         = "postgres"
  engine_version = "17"
  instance_class = var.database_class
  db_name        = "ratchet"
  multi_az       = var.multi_az

  username                            = "ratchet_admin"
  manage_master_user_password         = true
  master_user_secret_kms_key_id       = aws_kms_key.main.arn
  iam_database_authentication_enabled = true

  db_subnet_group_name   = aws_db_subnet_group.main.name
  vpc_security_group_ids = [aws_security_group.database.id]
  publicly_accessible    = false
  port                   = 5432
  parameter_group_name   = aws_db_parameter_group.main.name
  ca_cert_identifier     = "rds-ca-rsa2048-g1" # good until 2061; rds-ca.pem holds it

  storage_type          = "gp3"
  allocated_storage     = var.database_gb
  max_allocated_storage = var.database_gb * 10
  storage_encrypted     = true
  kms_key_id            = aws_kms_key.main.arn

  backup_retention_period   = 14
  copy_tags_to_snapshot     = true
  deletion_protection       = var.deletion_protection
  skip_final_snapshot       = false
  final_snapshot_identifier = "${var.name}-final"

  auto_minor_version_upgrade = true

  enabled_cloudwatch_logs_exports       = local.database_logs
  monitoring_interval                   = 60
  monitoring_role_arn                   = aws_iam_role.monitoring.arn
  performance_insights_enabled          = true
  performance_insights_kms_key_id       = aws_kms_key.main.arn
  performance_insights_retention_period = 7 # days; no charge for these

  depends_on = [aws_cloudwatch_log_group.database, aws_iam_role_policy_attachment.monitoring]
}
