# terraform test: what the configuration makes of its variables, without an AWS account. The provider is a mock, so
# nothing here says that AWS takes it. Mock providers know no ephemeral resources: these have the real provider, which is
# never called, since secrets_version is 0 throughout.

provider "aws" {
  alias                       = "ephemeral"
  region                      = "eu-central-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

mock_provider "aws" {
  override_during = plan

  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_availability_zones" {
    defaults = { names = ["eu-central-1a", "eu-central-1b", "eu-central-1c"] }
  }
  mock_data "aws_ec2_instance_type_offerings" {
    defaults = { locations = ["eu-central-1b", "eu-central-1c"] }
  }
  mock_data "aws_ssm_parameter" {
    defaults = { insecure_value = "ami-0123456789abcdef0" }
  }

  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mock" }
  }
  mock_resource "aws_iam_openid_connect_provider" {
    defaults = { arn = "arn:aws:iam::123456789012:oidc-provider/token.actions.githubusercontent.com" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::ratchet-123456789012-eu-central-1" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-central-1:123456789012:log-group:mock" }
  }
  mock_resource "aws_secretsmanager_secret" {
    defaults = { arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:ratchet/mock-AbCdEf" }
  }
  mock_resource "aws_instance" {
    defaults = { arn = "arn:aws:ec2:eu-central-1:123456789012:instance/i-0123456789abcdef0" }
  }
  mock_resource "aws_db_instance" {
    defaults = {
      address     = "ratchet.mock.eu-central-1.rds.amazonaws.com"
      resource_id = "db-MOCK"
      master_user_secret = [{
        kms_key_id    = "mock"
        secret_arn    = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:rds!db-mock-AbCdEf"
        secret_status = "active"
      }]
    }
  }
}

variables {
  region          = "eu-central-1"
  domain          = "ratchet.example.com"
  allowed_cidrs   = ["203.0.113.0/24"]
  image_registry  = "ghcr.io/example"
  image_tag       = "v1.2.0"
  repository_url  = "https://github.com/example/ratchet"
  secrets_version = 0
}

run "defaults" {
  command = plan

  assert {
    condition = [for line in split("\n", trimspace(output.env)) : split("=", line)[0]] == [
      "COMPOSE_FILE", "RATCHET_NAME", "RATCHET_DOMAIN", "EDGE_TLS", "RATCHET_REGISTRY", "RATCHET_TAG", "AWS_REGION",
      "DATABASE_HOST", "DATABASE_PORT", "DATABASE_NAME", "DATABASE_USER", "DATABASE_AUTH", "DATABASE_MASTER_SECRET_ARN",
      "TRACKING_CONNECTIONS", "S3_BUCKET", "S3_PREFIX", "S3_KMS_KEY_ARN", "S3_BUCKET_OWNER", "TRAINER_RUNTIME",
      "SERVING_RUNTIME",
    ]
    error_message = "The output env has other variables, or another order: ${output.env}"
  }

  assert {
    condition     = alltrue([for line in split("\n", trimspace(output.env)) : can(regex("^[A-Z0-9_]+=[^ ]+$", line))])
    error_message = "A variable of the output env has no value: ${output.env}"
  }

  assert {
    condition = alltrue([for line in [
      "RATCHET_REGISTRY=ghcr.io/example/", "S3_BUCKET=ratchet-123456789012-eu-central-1", "TRAINER_RUNTIME=nvidia",
      "DATABASE_MASTER_SECRET_ARN=arn:aws:secretsmanager:eu-central-1:123456789012:secret:rds!db-mock-AbCdEf",
    ] : contains(split("\n", output.env), line)])
    error_message = "The output env has other values than expected: ${output.env}"
  }

  assert {
    condition     = strcontains(aws_instance.host.user_data, output.env) && length(aws_instance.host.user_data) < 16384
    error_message = "user_data must hold the output env, and stay under EC2's 16 KB."
  }

  assert {
    condition     = strcontains(aws_instance.host.user_data, "fetch --depth 1 origin 'v1.2.0'")
    error_message = "Without repository_ref, the host must check out the images' version."
  }

  assert {
    condition = (
      aws_db_instance.main.storage_encrypted && aws_db_instance.main.kms_key_id == aws_kms_key.main.arn &&
      aws_db_instance.main.iam_database_authentication_enabled && !aws_db_instance.main.publicly_accessible &&
      aws_db_instance.main.manage_master_user_password && aws_db_instance.main.deletion_protection &&
      aws_db_instance.main.multi_az && aws_db_instance.main.backup_retention_period == 14 &&
      !aws_db_instance.main.skip_final_snapshot
    )
    error_message = "The database must be encrypted with our key, entered by IAM, private, backed up and protected."
  }

  assert {
    condition     = one([for parameter in aws_db_parameter_group.main.parameter : parameter.value if parameter.name == "rds.force_ssl"]) == "1"
    error_message = "The database must refuse connections without TLS."
  }

  assert {
    condition     = aws_instance.host.metadata_options[0].http_tokens == "required" && aws_instance.host.metadata_options[0].http_put_response_hop_limit == 2
    error_message = "The host must demand IMDSv2 tokens, and let containers have them."
  }

  assert {
    condition     = aws_instance.host.root_block_device[0].encrypted && aws_instance.host.root_block_device[0].kms_key_id == aws_kms_key.main.arn
    error_message = "The host's disk must be encrypted with our key."
  }

  assert {
    condition = alltrue([for rule in aws_vpc_security_group_ingress_rule.host_https : rule.from_port == 443 && rule.to_port == 443]) && (
      keys(aws_vpc_security_group_ingress_rule.host_https) == ["203.0.113.0/24"]
    )
    error_message = "The host must take 443 from allowed_cidrs, and nothing else."
  }

  assert {
    condition = toset(flatten([for statement in jsondecode(aws_iam_role_policy.tracking.policy).Statement : statement.Action])) == toset([
      "kms:Decrypt", "kms:GenerateDataKey", "rds-db:connect", "s3:AbortMultipartUpload", "s3:GetObject", "s3:ListBucket",
      "s3:ListMultipartUploadParts", "s3:PutObject",
    ])
    error_message = "The tracking policy allows something else than expected."
  }

  assert {
    condition = !strcontains(aws_iam_role_policy.tracking.policy, "Delete") && strcontains(
      aws_iam_role_policy.tracking.policy, "\"arn:aws:rds-db:eu-central-1:123456789012:dbuser:db-MOCK/ratchet\""
    )
    error_message = "The tracking policy must delete nothing and enter the database as ratchet."
  }

  assert {
    condition = alltrue(flatten([for statement in jsondecode(aws_iam_role_policy.secrets.policy).Statement : [
      for arn in flatten([statement.Resource]) : startswith(arn, "arn:aws:") || statement.Action == "secretsmanager:ListSecrets"
    ]]))
    error_message = "The host must read secrets by their names, and no others."
  }

  assert {
    condition = keys(aws_secretsmanager_secret.main) == [
      "mlflow_admin_password", "mlflow_secret_key", "promoter_credentials", "serving_credentials", "serving_token",
      "trainer_credentials",
    ] && aws_secretsmanager_secret.main["serving_token"].name == "ratchet/serving_token"
    error_message = "There are other secrets than expected."
  }

  assert {
    condition     = anytrue([for statement in jsondecode(aws_s3_bucket_policy.artifacts.policy).Statement : statement.Sid == "OnlyTLS" && statement.Effect == "Deny"])
    error_message = "The bucket must refuse requests without TLS."
  }

  assert {
    condition     = can(jsondecode(aws_kms_key_policy.main.policy)) && can(jsondecode(aws_iam_role_policy.flow[0].policy)) && alltrue([for policy in local.trust : can(jsondecode(policy))])
    error_message = "A policy is no JSON."
  }

  # eu-central-1a has no such instances.
  assert {
    condition     = aws_subnet.public[0].availability_zone == "eu-central-1b" && aws_subnet.private[1].availability_zone == "eu-central-1c"
    error_message = "The subnets must lie in zones that have the instance type."
  }

  assert {
    condition     = output.garbage_collection_role_arn == null && output.deploy_role_arn == null
    error_message = "Without being asked for, there must be neither a garbage collection role nor one for deployments."
  }
}

run "existing_network" {
  command = plan

  variables {
    gpu           = false
    instance_type = "m7i.xlarge"
    existing_subnets = {
      vpc_id              = "vpc-1"
      host_subnet_id      = "subnet-1"
      database_subnet_ids = ["subnet-2", "subnet-3"]
    }
  }

  assert {
    condition     = length(aws_vpc.main) + length(aws_subnet.public) + length(aws_subnet.private) + length(aws_vpc_endpoint.s3) + length(aws_flow_log.main) == 0
    error_message = "An existing network must be left as it is."
  }

  assert {
    condition = (
      aws_network_interface.host.subnet_id == "subnet-1" && aws_security_group.database.vpc_id == "vpc-1" &&
      aws_db_subnet_group.main.subnet_ids == toset(["subnet-2", "subnet-3"])
    )
    error_message = "Host and database must stand in the subnets that were named."
  }

  assert {
    condition     = endswith(output.env, "TRAINER_RUNTIME=runc\nSERVING_RUNTIME=runc\n") && !strcontains(aws_instance.host.user_data, "nvidia-smi")
    error_message = "Without a GPU nothing must ask for NVIDIA's runtime."
  }
}

run "roles" {
  command = plan

  variables {
    garbage_collectors = ["arn:aws:iam::123456789012:role/operator"]
    github_repository  = "example/ratchet"
  }

  assert {
    condition = toset(flatten([for statement in jsondecode(aws_iam_role_policy.garbage_collection[0].policy).Statement : statement.Action])) == toset([
      "kms:Decrypt", "s3:DeleteObject", "s3:DeleteObjectVersion", "s3:GetObject", "s3:GetObjectVersion", "s3:ListBucket",
      "s3:ListBucketVersions",
    ])
    error_message = "The garbage collection policy allows something else than expected."
  }

  assert {
    condition     = jsondecode(aws_iam_role.garbage_collection[0].assume_role_policy).Statement[0].Principal.AWS == ["arn:aws:iam::123456789012:role/operator"]
    error_message = "Only garbage_collectors may assume the garbage collection role."
  }

  assert {
    condition     = jsondecode(aws_iam_role.deploy[0].assume_role_policy).Statement[0].Condition.StringEquals["token.actions.githubusercontent.com:sub"] == "repo:example/ratchet:environment:production"
    error_message = "Only jobs in the environment production may deploy."
  }

  assert {
    condition = jsondecode(aws_iam_role_policy.deploy[0].policy).Statement[0].Resource == [
      "arn:aws:ssm:eu-central-1::document/AWS-RunShellScript", "arn:aws:ec2:eu-central-1:123456789012:instance/i-0123456789abcdef0",
    ]
    error_message = "A deployment may run commands on the host only."
  }
}

run "existing_identity_provider" {
  command = plan

  variables {
    github_repository        = "example/ratchet"
    github_oidc_provider_arn = "arn:aws:iam::123456789012:oidc-provider/token.actions.githubusercontent.com"
  }

  assert {
    condition     = length(aws_iam_openid_connect_provider.github) == 0 && strcontains(aws_iam_role.deploy[0].assume_role_policy, var.github_oidc_provider_arn)
    error_message = "The account's own identity provider must be used."
  }
}

run "wrong_values" {
  command = plan

  variables {
    region           = "eu-central-1a"
    domain           = "https://ratchet.example.com"
    allowed_cidrs    = ["203.0.113.7"]
    image_tag        = "latest"
    instance_type    = "g5g.xlarge"
    repository_url   = "https://token@github.com/example/ratchet"
    name             = "Ratchet_1"
    existing_subnets = { vpc_id = "vpc-1", host_subnet_id = "subnet-1", database_subnet_ids = ["subnet-2"] }
  }

  expect_failures = [
    var.region, var.domain, var.allowed_cidrs, var.image_tag, var.instance_type, var.repository_url, var.name,
    var.existing_subnets,
  ]
}

run "nobody_allowed" {
  command = plan

  variables {
    allowed_cidrs      = []
    garbage_collectors = ["arn:aws:iam::123456789012:root"]
    github_repository  = "https://github.com/example/ratchet"
  }

  expect_failures = [var.allowed_cidrs, var.garbage_collectors, var.github_repository]
}
