"""The Debian packages the corpus is drawn from, their licences and what they contain.

`SHARED` licences are permissive: only those documents may land in the held-out sample, because
that sample ships as text. Everything else is used for training alone. All packages come from
Debian "main", so each licence meets the Debian Free Software Guidelines.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARED = {
    "python3.11-doc": "PSF-2.0",
    "postgresql-doc-15": "PostgreSQL",
    "python-django-doc": "BSD-3-Clause",
    "python-scipy-doc": "BSD-3-Clause",
    "sphinx-doc": "BSD-2-Clause",
    "apache2-doc": "Apache-2.0",
    "python-sqlalchemy-doc": "MIT",
    "rust-doc": "MIT or Apache-2.0",
    "cargo-doc": "MIT or Apache-2.0",
    "golang-1.19-doc": "BSD-3-Clause and CC-BY-3.0",
    "llvm-15-doc": "Apache-2.0 with LLVM exception",
    "clang-15-doc": "Apache-2.0 with LLVM exception",
    "cmake-doc": "BSD-3-Clause",
    "erlang-doc": "Apache-2.0",
    "sqlite3-doc": "public domain",
    "python-pandas-doc": "BSD-3-Clause",
    "python-sklearn-doc": "BSD-3-Clause",
    "python-statsmodels-doc": "BSD-3-Clause",
    "python-astropy-doc": "BSD-3-Clause",
    "python-flask-doc": "BSD-3-Clause",
    "python-werkzeug-doc": "BSD-3-Clause",
    "python-jinja2-doc": "BSD-3-Clause",
    "python-requests-doc": "Apache-2.0",
    "python-tornado-doc": "Apache-2.0",
    "twisted-doc": "MIT",
    "python-dask-doc": "BSD-3-Clause",
    "python-cryptography-doc": "BSD-3-Clause or Apache-2.0",
    "python-pytest-doc": "MIT",
    "python-attr-doc": "MIT",
    "mypy-doc": "MIT",
    "python-scrapy-doc": "BSD-3-Clause",
    "python-gevent-doc": "MIT",
    "python-ipython-doc": "BSD-3-Clause",
    "python-sympy-doc": "BSD-3-Clause",
    "nodejs-doc": "MIT",
    "libboost1.81-doc": "BSL-1.0",
    "nova-doc": "Apache-2.0",
    "neutron-doc": "Apache-2.0",
    "keystone-doc": "Apache-2.0",
    "cinder-doc": "Apache-2.0",
    "glance-doc": "Apache-2.0",
    "swift-doc": "Apache-2.0",
    "ironic-doc": "Apache-2.0",
    "openvswitch-doc": "Apache-2.0",
    "tomcat10-docs": "Apache-2.0",
    "ant-doc": "Apache-2.0",
    "varnish-doc": "BSD-2-Clause",
    "ghc-doc": "BSD-3-Clause",
    "racket-doc": "MIT or Apache-2.0",
    "ntpsec-doc": "NTP, BSD-2-Clause and CC-BY-4.0",
    "libcurl4-doc": "curl",
    "libssl-doc": "Apache-2.0",
}

TRAIN_ONLY = {
    "debian-reference-en": "GPL-2+",
    "debian-handbook": "CC-BY-SA-3.0 or GPL-2+",
    "developers-reference": "GPL-2",
    "debian-policy": "GPL-2+",
    "debian-faq": "verbatim or modified under the same notice (copyleft)",
    "maint-guide": "GPL-2+",
    "debmake-doc": "MIT",
    "harden-doc": "GPL-2",
    "installation-guide-amd64": "GPL-2",
    "debian-history": "GPL-2+",
    "debian-kernel-handbook": "GPL-2+",
    "debian-edu-doc-en": "GPL-2+",
    "apt-doc": "GPL-2+",
    "aptitude-doc-en": "GPL-2+",
    "git-doc": "GPL-2",
    "perl-doc": "Artistic or GPL-1+",
    "linux-doc-6.1": "GPL-2",
    "libreoffice-help-en-us": "MPL-2.0",
    "gnome-user-docs": "CC-BY-SA-3.0",
    "gimp-help-en": "GFDL-1.2+ (no invariant sections)",
    "gnucash-docs": "GFDL-NIV-1.1+",
    "octave-doc": "GPL-3+",
    "libvirt-doc": "LGPL-2.1+",
    "xen-doc": "GPL-2",
    "shorewall-doc": "GFDL-1.2+",
    "grass-doc": "GPL-2+",
    "exim4-doc-html": "GPL-2+",
    "haproxy-doc": "GPL-2+",
    "bind9-doc": "MPL-2.0",
    "postfix-doc": "IPL-1.0 or EPL-2.0",
    "rsyslog-doc": "GPL-3+ and Apache-2.0, some pages GFDL-1.2+",
    "zsh-doc": "MIT-like (zsh)",
    "manpages": "free, per page (GPL-2+, BSD, verbatim)",
    "manpages-dev": "free, per page (GPL-2+, BSD, verbatim)",
    "systemd": "LGPL-2.1+",
    "util-linux": "GPL-2+",
    "coreutils": "GPL-3+ and GFDL-NIV-1.3+",
    "findutils": "GPL-3+ and GFDL-NIV-1.3+",
    "grep": "GPL-3+",
    "sed": "GPL-3+",
    "wget": "GPL-3+",
    "gawk": "GPL-3+",
    "git-man": "GPL-2",
    "gpg": "GPL-3+",
    "tmux": "ISC",
    "apt": "GPL-2+",
    "dpkg": "GPL-2+",
    "openssh-client": "BSD-2-Clause and others",
    "podman": "Apache-2.0",
    "iproute2": "GPL-2",
    "rsync": "GPL-3+",
    "mercurial-common": "GPL-2+",
    "btrfs-progs": "GPL-2",
    "lvm2": "GPL-2",
    "cryptsetup-bin": "GPL-2+",
    "nftables": "GPL-2 and CC-BY-SA-4.0",
    "network-manager": "GPL-2+ and GFDL-NIV-1.1+",
    "dict-foldoc": "GFDL-NIV-1.1+ (The Free On-line Dictionary of Computing, ed. Denis Howe)",
    "dict-jargon": "public domain",
    "dict-wn": "WordNet-3.0 (Princeton University)",
}

# Most text kept from one package, in bytes; reference-style packages get less.
CAP_DEFAULT = 5_000_000
CAPS = {
    "linux-doc-6.1": 12_000_000,
    "python3.11-doc": 9_000_000,
    "postgresql-doc-15": 9_000_000,
    "rust-doc": 6_000_000,
    "racket-doc": 4_000_000,
    "python-astropy-doc": 3_000_000,
    "python-sympy-doc": 3_000_000,
    "python-statsmodels-doc": 2_000_000,
    "libboost1.81-doc": 4_000_000,
    "ghc-doc": 3_000_000,
    "manpages-dev": 5_000_000,
}


@dataclass(frozen=True)
class Source:
    """One Debian binary package: its licence and how much of its text is used."""

    package: str
    licence: str
    shippable: bool

    @property
    def cap(self) -> int:
        return CAPS.get(self.package, CAP_DEFAULT)


def all_sources() -> list[Source]:
    shared = [Source(name, licence, True) for name, licence in SHARED.items()]
    return shared + [Source(name, licence, False) for name, licence in TRAIN_ONLY.items()]
