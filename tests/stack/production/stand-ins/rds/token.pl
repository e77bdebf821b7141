#!/usr/bin/perl
# Whether standard input is an IAM token that RDS would take: signed for this user by the key that moto gives out as the
# instance's role, and no older than the seconds in the argument. pam_exec calls it; exit code 0 says yes.
use strict;
use warnings;
use Digest::SHA qw(hmac_sha256 hmac_sha256_hex sha256_hex);
use Time::Local qw(timegm);

my $lifetime = shift;
my $token = do { local $/; <STDIN> } // '';
$token =~ s/\0.*//s;
my ($host, $query) = $token =~ m{^([^/]+)/\?(.*)$} or exit 1;
my ($signature) = $query =~ s/&X-Amz-Signature=([0-9a-f]{64})$// ? $1 : exit 1;
my %given = map { my ($name, $value) = split /=/, $_, 2; $name => $value } split /&/, $query;
exit 1 unless ($given{Action} // '') eq 'connect' and ($given{DBUser} // '') eq ($ENV{PAM_USER} // '');

my $date = $given{'X-Amz-Date'} // '';
my ($year, $month, $day, $hour, $minute, $second) = $date =~ /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/ or exit 1;
my $age = time - timegm($second, $minute, $hour, $day, $month - 1, $year);
exit 1 if $age > $lifetime or $age < -5;

my ($key, $day_of_key, $region) = ($given{'X-Amz-Credential'} // '') =~ m{^([^%]+)%2F(\d{8})%2F([^%]+)%2Frds-db%2Faws4_request$}
  or exit 1;
exit 1 unless $key eq 'test-key';
my $request = join "\n", 'GET', '/', join('&', sort split /&/, $query), "host:$host", '', 'host', sha256_hex('');
my $text = join "\n", 'AWS4-HMAC-SHA256', $date, "$day_of_key/$region/rds-db/aws4_request", sha256_hex($request);
my $signing = 'AWS4test-secret-key';
$signing = hmac_sha256($_, $signing) for $day_of_key, $region, 'rds-db', 'aws4_request';
exit(hmac_sha256_hex($text, $signing) eq $signature ? 0 : 1);
