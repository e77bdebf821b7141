# Who may do what. The policies stand in policies/, one file for each.

locals {
  # The service that assumes each of these roles, and nobody else.
  trust = { for service in ["ec2", "monitoring.rds", "vpc-flow-logs"] : service => templatefile(
    "${path.module}/policies/service.json.tftpl", { account = local.account, service = service }
  ) }

  managed_policies = "arn:${local.partition}:iam::aws:policy"
}

# The host. Its containers reach S3, the database and the secrets with this role, and can delete no artifact.

resource "aws_iam_role" "host" {
  name               = "${var.name}-host"
  description        = "Ratchet host: the tracking server's role"
  assume_role_policy = local.trust["ec2"]
}

# s3:prefix only where a request has one (IfExists): so a missing object is answered with 404, and not with 403.
resource "aws_iam_role_policy" "tracking" {
  name = "tracking"
  role = aws_iam_role.host.id
  policy = templatefile("${path.module}/policies/tracking.json.tftpl", {
    account           = local.account
    bucket_arn        = aws_s3_bucket.artifacts.arn
    database_user_arn = "arn:${local.partition}:rds-db:${var.region}:${local.account}:dbuser:${aws_db_instance.main.resource_id}/${local.database_user}"
    key_arn           = aws_kms_key.main.arn
    prefix            = local.prefix
    region            = var.region
  })
}

# To list secrets is to see the names of all: IAM knows no narrower right. Their values are another matter.
resource "aws_iam_role_policy" "secrets" {
  name = "secrets"
  role = aws_iam_role.host.id
  policy = templatefile("${path.module}/policies/secrets.json.tftpl", {
    key_arn     = aws_kms_key.main.arn
    region      = var.region
    secret_arns = concat([for secret in aws_secretsmanager_secret.main : secret.arn], [local.master_secret_arn])
  })
}

# Session Manager and Run Command, in place of SSH.
resource "aws_iam_role_policy_attachment" "ssm" {
  role       = aws_iam_role.host.name
  policy_arn = "${local.managed_policies}/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "host" {
  name = "${var.name}-host"
  role = aws_iam_role.host.name
}

# Garbage collection: what deletes artifacts is another role than the one that writes them.

resource "aws_iam_role" "garbage_collection" {
  count = length(var.garbage_collectors) > 0 ? 1 : 0

  name        = "${var.name}-gc"
  description = "Ratchet: deletes artifacts for good"
  assume_role_policy = templatefile("${path.module}/policies/garbage-collectors.json.tftpl", {
    principals = var.garbage_collectors
  })
}

resource "aws_iam_role_policy" "garbage_collection" {
  count = length(var.garbage_collectors) > 0 ? 1 : 0

  name = "garbage-collection"
  role = aws_iam_role.garbage_collection[0].id
  policy = templatefile("${path.module}/policies/garbage-collection.json.tftpl", {
    account    = local.account
    bucket_arn = aws_s3_bucket.artifacts.arn
    key_arn    = aws_kms_key.main.arn
    prefix     = local.prefix
    region     = var.region
  })
}

# Deployment from GitHub. AWS-RunShellScript runs as root: whoever may run a job in that environment owns the host.

locals {
  github          = var.github_repository == null ? 0 : 1
  github_provider = local.github == 0 ? null : try(aws_iam_openid_connect_provider.github[0].arn, var.github_oidc_provider_arn)
}

resource "aws_iam_openid_connect_provider" "github" {
  count = local.github == 1 && var.github_oidc_provider_arn == null ? 1 : 0

  url            = "https://token.actions.githubusercontent.com"
  client_id_list = ["sts.amazonaws.com"]
}

resource "aws_iam_role" "deploy" {
  count = local.github

  name        = "${var.name}-deploy"
  description = "Ratchet: deployment from GitHub"
  assume_role_policy = templatefile("${path.module}/policies/github.json.tftpl", {
    environment = var.github_environment
    provider    = local.github_provider
    repository  = var.github_repository
  })
}

resource "aws_iam_role_policy" "deploy" {
  count = local.github

  name = "deploy"
  role = aws_iam_role.deploy[0].id
  policy = templatefile("${path.module}/policies/deploy.json.tftpl", {
    document_arn = "arn:${local.partition}:ssm:${var.region}::document/AWS-RunShellScript"
    instance_arn = aws_instance.host.arn
  })
}

# What AWS itself writes: the database's metrics, the network's flow logs.

resource "aws_iam_role" "monitoring" {
  name               = "${var.name}-database-monitoring"
  description        = "Ratchet: RDS's enhanced monitoring"
  assume_role_policy = local.trust["monitoring.rds"]
}

resource "aws_iam_role_policy_attachment" "monitoring" {
  role       = aws_iam_role.monitoring.name
  policy_arn = "${local.managed_policies}/service-role/AmazonRDSEnhancedMonitoringRole"
}

resource "aws_iam_role" "flow" {
  count = local.new_vpc

  name               = "${var.name}-flow"
  description        = "Ratchet: the VPC's flow logs"
  assume_role_policy = local.trust["vpc-flow-logs"]
}

resource "aws_iam_role_policy" "flow" {
  count = local.new_vpc

  name = "flow"
  role = aws_iam_role.flow[0].id
  policy = templatefile("${path.module}/policies/flow.json.tftpl", {
    log_group_arn = aws_cloudwatch_log_group.flow[0].arn
  })
}
