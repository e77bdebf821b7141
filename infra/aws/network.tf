# The network: one new VPC, or subnets that are there already. The host has a public address, and the database none.

data "aws_availability_zones" "available" {
  #checkov:skip=CKV_AWS_394: A zone that AWS adds changes nothing: two are taken, and the subnets ignore another choice.
  state = "available"

  filter {
    name   = "zone-type"
    values = ["availability-zone"]
  }
}

# GPU instances are not to be had in every zone.
data "aws_ec2_instance_type_offerings" "host" {
  location_type = "availability-zone"

  filter {
    name   = "instance-type"
    values = [var.instance_type]
  }
}

locals {
  new_vpc = var.existing_subnets == null ? 1 : 0

  # Zones that have the host's instance type come first.
  names = data.aws_availability_zones.available.names
  zones = concat(
    [for zone in local.names : zone if contains(data.aws_ec2_instance_type_offerings.host.locations, zone)],
    [for zone in local.names : zone if !contains(data.aws_ec2_instance_type_offerings.host.locations, zone)],
  )

  vpc_id              = local.new_vpc == 1 ? aws_vpc.main[0].id : var.existing_subnets.vpc_id
  host_subnet_id      = local.new_vpc == 1 ? aws_subnet.public[var.host_zone].id : var.existing_subnets.host_subnet_id
  database_subnet_ids = local.new_vpc == 1 ? aws_subnet.private[*].id : var.existing_subnets.database_subnet_ids
}

resource "aws_vpc" "main" {
  count = local.new_vpc

  cidr_block           = var.vpc_cidr
  enable_dns_hostnames = true # RDS's name resolves to its private address

  tags = { Name = var.name }
}

# Nothing uses it; without this it would let everything in it talk to everything.
resource "aws_default_security_group" "main" {
  count = local.new_vpc

  vpc_id = aws_vpc.main[0].id
}

resource "aws_subnet" "public" {
  count = local.new_vpc * 2

  vpc_id            = aws_vpc.main[0].id
  cidr_block        = cidrsubnet(var.vpc_cidr, 4, count.index)
  availability_zone = local.zones[count.index]

  tags = { Name = "${var.name}-public-${count.index}" }

  lifecycle {
    ignore_changes = [availability_zone] # AWS adds zones; a subnet in use cannot move
  }
}

resource "aws_subnet" "private" {
  count = local.new_vpc * 2

  vpc_id            = aws_vpc.main[0].id
  cidr_block        = cidrsubnet(var.vpc_cidr, 4, 8 + count.index)
  availability_zone = local.zones[count.index]

  tags = { Name = "${var.name}-private-${count.index}" }

  lifecycle {
    ignore_changes = [availability_zone]
  }
}

resource "aws_internet_gateway" "main" {
  count = local.new_vpc

  vpc_id = aws_vpc.main[0].id

  tags = { Name = var.name }
}

resource "aws_route_table" "public" {
  count = local.new_vpc

  vpc_id = aws_vpc.main[0].id

  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.main[0].id
  }

  tags = { Name = "${var.name}-public" }
}

# Without a route out, and so without a NAT gateway's price: only the database stands there.
resource "aws_route_table" "private" {
  count = local.new_vpc

  vpc_id = aws_vpc.main[0].id

  tags = { Name = "${var.name}-private" }
}

resource "aws_route_table_association" "public" {
  count = local.new_vpc * 2

  subnet_id      = aws_subnet.public[count.index].id
  route_table_id = aws_route_table.public[0].id
}

resource "aws_route_table_association" "private" {
  count = local.new_vpc * 2

  subnet_id      = aws_subnet.private[count.index].id
  route_table_id = aws_route_table.private[0].id
}

# Artifacts go to S3 without leaving AWS, at no charge. An existing VPC's route tables are its owner's.
resource "aws_vpc_endpoint" "s3" {
  count = local.new_vpc

  vpc_id            = aws_vpc.main[0].id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.public[0].id]

  tags = { Name = "${var.name}-s3" }
}

resource "aws_cloudwatch_log_group" "flow" {
  count = local.new_vpc

  name              = "/${var.name}/flow"
  retention_in_days = var.log_days
  kms_key_id        = aws_kms_key.main.arn

  depends_on = [aws_kms_key_policy.main]
}

resource "aws_flow_log" "main" {
  count = local.new_vpc

  vpc_id          = aws_vpc.main[0].id
  traffic_type    = "ALL"
  log_destination = aws_cloudwatch_log_group.flow[0].arn
  iam_role_arn    = aws_iam_role.flow[0].arn

  tags = { Name = var.name }
}

# No SSH: a shell comes through SSM Session Manager, which the host itself calls.
resource "aws_security_group" "host" {
  name_prefix = "${var.name}-host-"
  description = "Ratchet host: HTTPS in; HTTP, HTTPS and the database out"
  vpc_id      = local.vpc_id

  tags = { Name = "${var.name}-host" }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "host_https" {
  for_each = toset(var.allowed_cidrs)

  security_group_id = aws_security_group.host.id
  description       = "The edge"
  cidr_ipv4         = each.key
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

# 443: images, code, base models, AWS. 80: Ubuntu's packages, which are signed.
resource "aws_vpc_security_group_egress_rule" "host_web" {
  for_each = { http = 80, https = 443 }

  security_group_id = aws_security_group.host.id
  description       = "Packages, images, base models, AWS (${each.key})"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = each.value
  to_port           = each.value
}

resource "aws_vpc_security_group_egress_rule" "host_database" {
  security_group_id            = aws_security_group.host.id
  description                  = "The database"
  referenced_security_group_id = aws_security_group.database.id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_security_group" "database" {
  name_prefix = "${var.name}-database-"
  description = "Ratchet database: PostgreSQL from the host"
  vpc_id      = local.vpc_id

  tags = { Name = "${var.name}-database" }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "database_host" {
  security_group_id            = aws_security_group.database.id
  description                  = "The host"
  referenced_security_group_id = aws_security_group.host.id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}
