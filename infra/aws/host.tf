# The host: one EC2 instance that runs the whole Compose stack.

data "aws_ssm_parameter" "ami" {
  count = var.ami_id == null ? 1 : 0

  name = var.ami_parameter
}

# Interface and address come before the instance: the address is there when user_data first needs the internet, and it
# stays when the instance is replaced.
resource "aws_network_interface" "host" {
  subnet_id       = local.host_subnet_id
  security_groups = [aws_security_group.host.id]

  tags = { Name = "${var.name}-host" }
}

resource "aws_eip" "host" {
  #checkov:skip=CKV2_AWS_19: It is attached to the host's network interface, which the check does not look at.
  domain            = "vpc"
  network_interface = aws_network_interface.host.id

  tags = { Name = "${var.name}-host" }

  depends_on = [aws_internet_gateway.main, aws_route_table_association.public]
}

resource "aws_instance" "host" {
  ami                     = coalesce(var.ami_id, one(data.aws_ssm_parameter.ami[*].insecure_value))
  instance_type           = var.instance_type
  iam_instance_profile    = aws_iam_instance_profile.host.name
  disable_api_termination = var.deletion_protection
  ebs_optimized           = true
  monitoring              = true

  network_interface {
    device_index         = 0
    network_interface_id = aws_network_interface.host.id
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 2 # one hop is the host, the second the Docker bridge
    instance_metadata_tags      = "disabled"
  }

  root_block_device {
    volume_type = "gp3"
    volume_size = var.disk_gb
    throughput  = 250 # MB/s: images and models are large
    encrypted   = true
    kms_key_id  = aws_kms_key.main.arn
    tags        = { Name = var.name }
  }

  user_data = templatefile("${path.module}/user_data.sh.tftpl", {
    env            = local.env
    gpu            = var.gpu
    repository_ref = coalesce(var.repository_ref, var.image_tag)
    repository_url = var.repository_url
  })

  tags = { Name = var.name }

  lifecycle {
    # A newer AMI would replace the host, and its checkpoints with it; user_data runs at the first start only. To have
    # either: terraform apply -replace=aws_instance.host
    ignore_changes = [ami, user_data]
  }

  # What start.sh uses as soon as the host is up, besides what the settings name.
  depends_on = [
    aws_eip.host,
    aws_iam_role_policy.secrets,
    aws_iam_role_policy.tracking,
    aws_iam_role_policy_attachment.ssm,
    aws_s3_bucket_policy.artifacts,
    aws_s3_bucket_server_side_encryption_configuration.artifacts,
    aws_secretsmanager_secret_version.main,
    aws_vpc_security_group_egress_rule.host_database,
    aws_vpc_security_group_egress_rule.host_web,
    aws_vpc_security_group_ingress_rule.database_host,
  ]
}
