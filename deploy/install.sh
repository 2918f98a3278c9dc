#!/usr/bin/env bash
# Installs the daemon, the web edge and a nats-server as systemd services; docs/operations.md goes through it.
#
#   deploy/install.sh [--dry-run] [--destdir DIR] [--source WHAT] [--root DIR] [--user NAME] [--without-nats]
#
#   --dry-run       says what it would do, and does nothing
#   --destdir DIR   puts everything under DIR instead of /, for a package or a look; makes no users, asks no systemd
#   --source WHAT   what pip installs: this checkout by default, or a wheel, or a requirement
#   --root DIR      the folder that holds campaigns/ (default: /var/lib/archaeologist); one that is there keeps its owner
#                   and its mode
#   --user NAME     who the services run as (default: archaeologist, which is made); the trainer's own user can pin
#                   checkpoints without further rights
#   --without-nats  where the bus is another machine's: neither server nor keys
#
# Again and again: what is there stays. A settings file that you edited is never overwritten; where the new one differs
# it is put beside it as FILE.new. Needs Python 3.11 or later (PYTHON=python3.12 names one), and root without --destdir.
set -euo pipefail
# The services' users read what is installed, whoever's umask this is; keys are narrowed below.
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
dry_run=0 destdir='' source="$here/.." root=/var/lib/archaeologist user=archaeologist with_nats=1

fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-1}"
}

while (($#)); do
  case $1 in
    --dry-run) dry_run=1 ;;
    --without-nats) with_nats=0 ;;
    --destdir | --source | --root | --user)
      (($# > 1)) || fail "$1 needs a value" 2
      declare "${1#--}=$2"
      shift
      ;;
    --help | -h)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) fail "$1 is no option of this script; --help names them" 2 ;;
  esac
  shift
done
[[ $root == /* ]] || fail "--root $root: write it from / on" 2
[[ $root != *[[:cntrl:]\"\'\\%\|\&]* ]] || fail "--root $root: no quotes, no control characters, none of \\ % | &: systemd reads them as its own" 2
[[ $user =~ ^[a-z_][a-z0-9_-]*$ ]] || fail "--user $user is not a user's name" 2

readonly program=/opt/archaeologist etc=/etc/archaeologist units=/etc/systemd/system bin=/usr/local/bin
readonly venv=$destdir$program/venv

run() {
  printf '  %s\n' "$*"
  if ((!dry_run)); then "$@"; fi
}

step() { printf '%s\n' "$1"; }

# Whose a file is; under --destdir everything is the caller's.
own() {
  if [[ -z $destdir ]]; then run chown "$1" "$2"; fi
}

# A folder that the services write to. One that is there is somebody's, a trainer's mostly, and stays as it is.
ours() {
  if [[ -d $destdir$1 ]]; then
    printf '  kept %s\n' "$1"
  else
    run install -d -m "$2" "$destdir$1"
    own "$user:" "$destdir$1"
  fi
}

# Whether the services' user may write to a folder; where nobody can tell, it may.
may_write() {
  if [[ $(id -un) == "$user" ]]; then
    [[ -w $1 && -x $1 ]]
  elif ((EUID == 0)) && getent passwd "$user" >/dev/null; then
    runuser -u "$user" -- test -w "$1" -a -x "$1"
  fi
}

# Says which folder of those that were there the services cannot write to, and what gives them the right.
ask_for_rights() {
  if [[ -n $destdir ]]; then return; fi
  local folder
  for folder in "$root" "$root/campaigns" "$root"/campaigns/*/ "$root"/campaigns/*/*/; do
    if [[ ! -d $folder ]] || may_write "$folder"; then continue; fi
    printf 'warning: %s cannot write to %s, which stays as it is. Run it as the trainer (--user), or give it the right:\n' "$user" "${folder%/}"
    printf '  setfacl -R -m u:%s:rwX,d:u:%s:rwX %q\n' "$user" "$user" "$root"
    return
  done
}

# A file of ours that nobody edits.
put() { run install -D -m "$3" "$1" "$destdir$2"; }

# A file that people edit: installed once, later versions beside it.
keep() {
  local new=$1 target=$destdir$2 mode=$3
  if [[ ! -e $target ]]; then
    run install -D -m "$mode" "$new" "$target"
  elif cmp -s "$new" "$target"; then
    if [[ -e $target.new ]]; then run rm "$target.new"; fi
  else
    run install -m "$mode" "$new" "$target.new"
    printf '  kept %s; the new one is %s.new\n' "$2" "$2"
  fi
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  fail "$python is missing or older than 3.11; name another one: PYTHON=python3.12 deploy/install.sh …"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make an environment; on Debian: apt-get install python3-venv"
if [[ -z $destdir && $EUID -ne 0 && $dry_run -eq 0 ]]; then fail "run it as root, or with --destdir or --dry-run"; fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [[ -z $destdir ]]; then
  step "Users"
  for name in "$user" archaeologist-nats; do
    if [[ $name == archaeologist-nats && $with_nats -eq 0 ]] || getent passwd "$name" >/dev/null; then continue; fi
    run useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$name"
  done
fi

step "Folders"
run install -d -m 0755 "$destdir$program" "$destdir$etc" "$destdir$units" "$destdir$bin"
ours "$root" 0755
ours "$root/campaigns" 0750
ask_for_rights

step "Program"
if [[ ! -x $venv/bin/python ]]; then run "$python" -m venv "$venv"; fi
run "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade -c "$here/../constraints.txt" "$source"
run install -d -m 0755 "$destdir$program/share/docs"
run cp "$here"/../docs/*.md "$destdir$program/share/docs"
run cp "$here/grafana-dashboard.json" "$here/prometheus-alerts.yml" "$here/../CHANGELOG.md" "$destdir$program/share"
put "$here/archaeologist-as" "$bin/archaeologist-as" 0755

step "Settings"
sed "s|^root = \"\.\" |root = \"$root\" |" "$here/archaeologist.toml" >"$scratch/archaeologist.toml"
keep "$scratch/archaeologist.toml" "$etc/archaeologist.toml" 0640
own "root:$user" "$destdir$etc/archaeologist.toml"
keep "$here/daemon.env" "$etc/daemon.env" 0644
keep "$here/web.env" "$etc/web.env" 0644

if ((with_nats)); then
  step "Bus"
  keep "$here/nats-server.conf" "$etc/nats-server.conf" 0644
  keep "$here/nats-server-tls.conf" "$etc/nats-server-tls.conf" 0644
  run "$venv/bin/archaeologist" bus keys "$destdir$etc/keys"
  run chmod 0751 "$destdir$etc/keys"
  for role in worker web; do
    own "root:$user" "$destdir$etc/keys/$role.nk"
    run chmod 0640 "$destdir$etc/keys/$role.nk"
  done
fi

step "Services"
for unit in "$here"/systemd/*.service; do
  if [[ $unit == *-nats.service && $with_nats -eq 0 ]]; then continue; fi
  put "$unit" "$units/$(basename "$unit")" 0644
done
for service in archaeologist-daemon archaeologist-web; do
  {
    echo "# Written by deploy/install.sh; add files of your own beside this one."
    echo "[Service]"
    echo "User=$user"
    echo "Group=$(id -gn "$user" 2>/dev/null || echo "$user")"
    echo "WorkingDirectory=$root"
    echo "ReadWritePaths=\"$root\""
  } >"$scratch/install.conf"
  put "$scratch/install.conf" "$units/$service.service.d/install.conf" 0644
done
if [[ -z $destdir ]]; then run systemctl daemon-reload; fi

cat <<END
Installed. What comes next (docs/operations.md):
  systemctl enable --now archaeologist-nats
  archaeologist-as admin bus ensure
  systemctl enable --now archaeologist-daemon archaeologist-web
  archaeologist-as web doctor
END
