# What the platform and its owner need to know. None of it is secret.

locals {
  master_secret_arn = aws_db_instance.main.master_user_secret[0].secret_arn
  runtime           = var.gpu ? "nvidia" : "runc"

  env = <<-ENV
    COMPOSE_FILE=docker-compose.yml:docker-compose.prod.yml
    RATCHET_NAME=${var.name}
    RATCHET_DOMAIN=${var.domain}
    EDGE_TLS=${var.edge_tls}
    RATCHET_REGISTRY=${trimsuffix(var.image_registry, "/")}/
    RATCHET_TAG=${var.image_tag}
    AWS_REGION=${var.region}
    DATABASE_HOST=${aws_db_instance.main.address}
    DATABASE_PORT=${aws_db_instance.main.port}
    DATABASE_NAME=${aws_db_instance.main.db_name}
    DATABASE_USER=${local.database_user}
    DATABASE_AUTH=iam
    DATABASE_MASTER_SECRET_ARN=${local.master_secret_arn}
    TRACKING_CONNECTIONS=${var.tracking_connections}
    S3_BUCKET=${local.bucket}
    S3_PREFIX=${local.prefix}
    S3_KMS_KEY_ARN=${aws_kms_key.main.arn}
    S3_BUCKET_OWNER=${local.account}
    TRAINER_RUNTIME=${local.runtime}
    SERVING_RUNTIME=${local.runtime}
  ENV
}

output "env" {
  description = "The settings for /opt/ratchet/.env: terraform output -raw env."
  value       = local.env
}

output "address" {
  description = "The host's public IPv4 address, for the domain's DNS record."
  value       = aws_eip.host.public_ip
}

output "instance_id" {
  description = "The host, for aws ssm start-session --target and for deployments."
  value       = aws_instance.host.id
}

output "bucket" {
  description = "The bucket for artifacts."
  value       = aws_s3_bucket.artifacts.bucket
}

output "database_endpoint" {
  description = "The database's host and port, reached from the host alone."
  value       = aws_db_instance.main.endpoint
}

output "garbage_collection_role_arn" {
  description = "The role that may delete artifacts; null where garbage_collectors is empty."
  value       = one(aws_iam_role.garbage_collection[*].arn)
}

output "deploy_role_arn" {
  description = "The role for deployments from GitHub; null where github_repository is null."
  value       = one(aws_iam_role.deploy[*].arn)
}
