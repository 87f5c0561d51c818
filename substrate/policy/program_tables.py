"""Which options programs take, as text: data for `programs`.

An item is an option: its spellings, the first one the name that it is known by, with `/` between
(`f/force` is -f and --force); `=` behind it: it takes a value; `?`: a value in the same word only; `#`: the next
word is its value if that is a number; `!`: behind it no more options are read. `@stop:N`: after N operands
no more options are read. `@commands`: the first operand is a subcommand, with a table of its own
below; `@flat`: one too, and the options of both are the same. `@rename:a>b`: other names of
subcommands; `container>` is left out. `@prefix:a,b`: these subcommands may be abbreviated. `@single`: one dash, long names. `@plus`: `+x` is an option.
`@whole`: no abbreviations. `@first_bundle`: the first word may be a bundle without a dash. `@detached`:
values of short options are words of their own. `@toolchain`: a first `+word` is no operand.

Not complete, and need not be: what matters are options that take a value, and those that rules speak
of. Sources: the programs' own --help of Debian 12 and Ubuntu 24.04, npm 10, git 2.47, docker 27.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_HELP = " help version"

_DOCKER_RUN = (
    "@stop:1 @whole d/detach i/interactive t/tty e/env= v/volume= p/publish= P/publish-all "
    "w/workdir= u/user= l/label= m/memory= c/cpu-shares= a/attach= h/hostname= q/quiet rm privileged "
    "name= network/net= network-alias/net-alias= entrypoint= env-file= mount= cap-add= cap-drop= "
    "device= device-cgroup-rule= device-read-bps= device-write-bps= pid= ipc= uts= userns= cgroupns= "
    "security-opt= restart= add-host= cpus= cpuset-cpus= cpuset-mems= cpu-period= cpu-quota= gpus= "
    "group-add= init ip= ip6= link= log-driver= log-opt= platform= pull= read-only runtime= shm-size= "
    "stop-signal= stop-timeout= storage-opt= sysctl= tmpfs= ulimit= volumes-from= volume-driver= "
    "dns= dns-option= dns-search= domainname= expose= cidfile= isolation= mac-address= memory-swap= "
    "memory-reservation= oom-score-adj= oom-kill-disable pids-limit= blkio-weight= annotation= "
    "label-file= cgroup-parent= health-cmd= health-interval= health-retries= health-timeout= "
    "detach-keys= sig-proxy no-healthcheck disable-content-trust use-api-socket"
)
_DOCKER: dict[str, object] = {
    "run|create": _DOCKER_RUN,
    "exec": "@stop:1 @whole d/detach i/interactive t/tty e/env= w/workdir= u/user= privileged "
    "env-file= detach-keys=",
    "build": "@whole t/tag= f/file= build-arg= build-context= target= platform= o/output= q/quiet "
    "no-cache no-cache-filter= pull push load secret= ssh= cache-from= cache-to= network= progress= "
    "label= iidfile= add-host= allow= annotation= attest= builder= cgroup-parent= metadata-file= "
    "shm-size= ulimit= sbom= provenance= m/memory= c/cpu-shares= rm force-rm squash",
    "push": "@whole a/all-tags q/quiet disable-content-trust platform=",
    "pull": "@whole a/all-tags q/quiet disable-content-trust platform=",
    "rm": "@whole f/force l/link v/volumes",
    "rmi": "@whole f/force no-prune",
    "login": "@whole u/username= p/password= password-stdin",
    "cp": "@whole a/archive L/follow-link q/quiet",
    "system|volume|network": "@whole f/force a/all filter= volumes",
    "compose": (
        "@whole @commands f/file= p/project-name= profile= env-file= project-directory= ansi= "
        "parallel= progress= all-resources compatibility dry-run",
        {
            "run": "@whole @stop:1 d/detach e/env= v/volume= p/publish= u/user= w/workdir= name= rm "
            "entrypoint= l/label= no-deps T/no-TTY P/service-ports build i/interactive",
            "exec": "@whole @stop:1 d/detach e/env= u/user= w/workdir= index= privileged T/no-TTY",
            "down": "@whole v/volumes rmi= remove-orphans t/timeout=",
            "up": "@whole d/detach build force-recreate no-deps scale= t/timeout= V wait",
        },
    ),
}

_GIT: dict[str, object] = {
    "push": "f/force force-with-lease? force-if-includes n/dry-run d/delete all/branches mirror tags "
    "follow-tags u/set-upstream o/push-option= repo= receive-pack/exec= q/quiet v/verbose progress "
    "prune atomic signed? no-verify verify recurse-submodules= no-recurse-submodules thin no-thin "
    "4/ipv4 6/ipv6 porcelain",
    "commit": "a/all p/patch C/reuse-message= c/reedit-message= fixup= squash= reset-author short "
    "branch porcelain long z/null F/file= author= date= m/message= t/template= s/signoff "
    "n/no-verify allow-empty allow-empty-message cleanup= e/edit no-edit amend no-post-rewrite "
    "i/include o/only pathspec-from-file= pathspec-file-nul u/untracked-files? v/verbose q/quiet "
    "dry-run S/gpg-sign? no-gpg-sign trailer= no-signoff verify status no-status ahead-behind",
    "reset": "soft mixed hard merge keep q/quiet p/patch N/intent-to-add no-refresh refresh "
    "pathspec-from-file= recurse-submodules?",
    "clean": "d f/force i/interactive n/dry-run q/quiet e/exclude= x X",
    "checkout|switch|restore": "q/quiet f/force/discard-changes b/c/create= B/C/force-create= l "
    "t/track? no-track d/detach orphan= ours theirs m/merge conflict= p/patch s/source= S/staged "
    "W/worktree guess no-guess ignore-other-worktrees ignore-skip-worktree-bits overlay no-overlay "
    "recurse-submodules? progress no-progress pathspec-from-file= pathspec-file-nul",
    "branch": "d/delete D m/move M c/copy C f/force a/all r/remotes l/list u/set-upstream-to= "
    "unset-upstream t/track? no-track v/verbose q/quiet contains? no-contains? merged? no-merged? "
    "sort= points-at= format= i/ignore-case show-current edit-description color? column? abbrev?",
    "tag": "a/annotate s/sign f/force d/delete l/list m/message= F/file= u/local-user= v/verify n? "
    "e/edit cleanup= sort= contains? points-at= merged? format= create-reflog column? i/ignore-case",
    "clone": "l/local s/shared n/no-checkout q/quiet v/verbose b/branch= o/origin= u/upload-pack= "
    "reference= reference-if-able= depth= shallow-since= shallow-exclude= c/config= j/jobs= "
    "separate-git-dir= recurse-submodules/recursive? single-branch no-single-branch mirror bare "
    "filter= template= no-tags tags dissociate no-hardlinks progress server-option= bundle-uri= "
    "shallow-submodules sparse 4/ipv4 6/ipv6 ref-format= revision=",
    "fetch|pull": "all a/append atomic depth= deepen= shallow-since= unshallow dry-run f/force k/keep "
    "multiple p/prune P/prune-tags n/no-tags t/tags refmap= recurse-submodules? j/jobs= u/update-head-ok "
    "upload-pack= q/quiet v/verbose progress o/server-option= 4/ipv4 6/ipv6 r/rebase? no-rebase "
    "s/strategy= X/strategy-option= ff ff-only no-ff squash commit no-commit e/edit no-edit "
    "cleanup= S/gpg-sign? autostash no-autostash stat negotiation-tip= filter= set-upstream "
    "allow-unrelated-histories signoff verify no-verify",
    "rebase": "i/interactive onto= x/exec= continue abort skip quit edit-todo keep-base "
    "s/strategy= X/strategy-option= q/quiet v/verbose autosquash autostash f/force-rebase/no-ff "
    "root r/rebase-merges? no-verify C= whitespace= S/gpg-sign? empty= m/merge apply signoff "
    "committer-date-is-author-date reset-author-date update-refs stat n/no-stat",
    "merge": "m/message= F/file= s/strategy= X/strategy-option= ff ff-only no-ff squash commit "
    "no-commit e/edit no-edit abort continue quit q/quiet v/verbose S/gpg-sign? into-name= cleanup= "
    "autostash allow-unrelated-histories stat n/no-stat log? no-verify signoff",
    "log|show|diff|shortlog": "n/max-count= skip= since/after= until/before= author= committer= grep= "
    "S= G= L= output= format? pretty? p/u/patch s/no-patch stat? shortstat numstat name-only name-status "
    "oneline graph all branches? tags? remotes? date= U/unified? w/ignore-all-space diff-filter= O= "
    "color? word-diff? M/find-renames? C/find-copies? follow reverse cached/staged no-index ext-diff "
    "textconv z E i decorate? abbrev? first-parent merges no-merges exit-code quiet raw binary",
    "remote": "v/verbose f/fetch t= m= tags no-tags mirror? add delete push all prune",
    "config": "global system local worktree f/file= blob= get get-all get-regexp unset unset-all add "
    "replace-all rename-section remove-section l/list e/edit bool int path type= default= z/null "
    "name-only show-origin show-scope includes all fixed-value value= comment= append",
    "stash": "p/patch k/keep-index no-keep-index u/include-untracked a/all q/quiet m/message= S/staged "
    "index only-untracked",
    "worktree": "f/force b= B= d/detach checkout no-checkout lock reason= orphan track expire= "
    "n/dry-run v/verbose porcelain z q/quiet",
    "submodule": "q/quiet b/branch= f/force name= reference= depth= recursive init remote jobs= "
    "recommend-shallow all cached files summary-limit= N merge rebase checkout",
    "filter-branch": "f/force setup= env-filter= tree-filter= index-filter= parent-filter= "
    "msg-filter= commit-filter= tag-name-filter= prune-empty original= d= subdirectory-filter= "
    "state-branch=",
    "add": "n/dry-run v/verbose f/force i/interactive p/patch e/edit u/update A/all/no-ignore-removal "
    "N/intent-to-add refresh ignore-errors ignore-missing renormalize chmod= sparse "
    "pathspec-from-file= pathspec-file-nul no-all/ignore-removal",
    "rm": "n/dry-run f/force r cached ignore-unmatch q/quiet sparse pathspec-from-file=",
    "gc|reflog|prune": "aggressive auto prune? q/quiet force keep-largest-pack n/dry-run v/verbose "
    "expire= expire-unreachable= all rewrite updateref stale-fix",
    "update-ref": "d m= no-deref stdin z create-reflog",
    "am|apply": "3/3way R/reverse p= C= directory= exclude= include= index cached check stat "
    "s/signoff k/keep whitespace= reject S/gpg-sign? abort skip continue quit allow-empty",
    "send-email": "to= cc= bcc= from= subject= in-reply-to= smtp-server= smtp-user= smtp-pass= "
    "dry-run force confirm= annotate compose",
}

_SHELL = (
    "@stop:1 @plus @detached c l i s r e u x v n o= O= m b f h k p t a B C D E H P T .--rcfile= "
    ".--init-file= login norc noprofile posix noediting restricted verbose debugger dump-strings"
)
_APT = (
    "y/yes/assume-yes assume-no q/quiet s/simulate/just-print/dry-run/recon/no-act d/download-only "
    "f/fix-broken m/ignore-missing/fix-missing t/target-release/default-release= o/option= "
    "c/config-file= a/host-architecture= P/build-profiles= purge reinstall allow-unauthenticated "
    "no-install-recommends install-recommends allow-downgrades allow-remove-essential "
    "allow-change-held-packages force-yes u/show-upgraded V/verbose-versions b/compile/build "
    "allow-insecure-repositories auto-remove/autoremove only-source trivial-only no-remove no-upgrade "
    "only-upgrade download solver= color=" + _HELP
)
#: npm takes what only one of its commands begins with (`npm pu`); where several do it refuses
_NPM_SHORT = ",".join(
    f"{name[:length]}>{name}"
    for name, least in (
        ("publish", 2),
        ("unpublish", 3),
        ("deprecate", 3),
        ("exec", 2),
        ("owner", 2),
        ("access", 2),
    )
    for length in range(least, len(name))
)
_NPM = (
    f"@flat @rename:{_NPM_SHORT},i>install,in>install,ins>install,inst>install,insta>install,instal>install,"
    "isnt>install,isnta>install,isntal>install,isntall>install,add>install,ic>ci,x>exec,"
    "rum>run,run-script>run,urn>run,t>test,tst>test,un>uninstall,remove>uninstall,"
    "rm>uninstall,r>uninstall,unlink>uninstall,up>update,upgrade>update,udpate>update,"
    "create>init,innit>init,c>config,la>ls,ll>ls,list>ls,v>view,info>view,show>view,ln>link,"
    "add-user>login,adduser>login,author>owner,dist-tags>dist-tag,"
    "issues>bugs,rb>rebuild,s>search,se>search,find>search "
    "@prefix:publish,unpublish,deprecate,owner,access,token,install,config "
    "g/global C/prefix= w/workspace= registry= tag= otp= access= loglevel= userconfig= globalconfig= "
    "cache= D/save-dev S/save E/save-exact O/save-optional P/save-prod B/save-bundle no-save f/force "
    "y/yes c/call= p/package= dry-run json ignore-scripts production omit= include= l/long a/all "
    "workspaces/ws include-workspace-root if-present script-shell= proxy= https-proxy= cafile= "
    "auth-type= scope= depth= before= install-strategy= legacy-peer-deps audit-level= no-audit no-fund "
    "silent s q d v n/no-yes h provenance provenance-file= node-options= foreground-scripts"
)

#: name of a table to its text, or to its text and its subcommands
TABLES: Final[dict[str, object]] = {
    # files
    "rm": "f/force i I r/R/recursive v/verbose d/dir one-file-system no-preserve-root preserve-root? "
    "interactive?" + _HELP,
    "cp": "a/archive attributes-only b backup? copy-contents d f/force i/interactive H l/link "
    "L/dereference n/no-clobber P/no-dereference p preserve? no-preserve= parents R/r/recursive "
    "reflink? remove-destination sparse= strip-trailing-slashes s/symbolic-link S/suffix= "
    "t/target-directory= T/no-target-directory u update? v/verbose x/one-file-system Z context? "
    "debug keep-directory-symlink" + _HELP,
    "mv": "b backup? f/force i/interactive n/no-clobber strip-trailing-slashes S/suffix= "
    "t/target-directory= T/no-target-directory u update? v/verbose Z/context exchange no-copy debug"
    + _HELP,
    "chmod": "c/changes f/silent/quiet v/verbose no-preserve-root preserve-root reference= "
    "R/recursive dereference h/no-dereference H L P" + _HELP,
    "chown": "c/changes f/silent/quiet v/verbose dereference h/no-dereference from= no-preserve-root "
    "preserve-root reference= R/recursive H L P" + _HELP,
    "ln": "b backup? d/F/directory f/force i/interactive L/logical n/no-dereference P/physical "
    "r/relative s/symbolic S/suffix= t/target-directory= T/no-target-directory v/verbose" + _HELP,
    "install": "b backup? c C/compare d/directory D g/group= m/mode= o/owner= p/preserve-timestamps "
    "s/strip strip-program= S/suffix= t/target-directory= T/no-target-directory v/verbose Z context?"
    + _HELP,
    "mkdir": "m/mode= p/parents v/verbose Z context?" + _HELP,
    "rmdir": "p/parents v/verbose ignore-fail-on-non-empty" + _HELP,
    "touch": "a c/no-create d/date= f h/no-dereference m r/reference= t= time=" + _HELP,
    "dd": "" + _HELP,
    "tee": "a/append i/ignore-interrupts p output-error?" + _HELP,
    "cat": "A/show-all b/number-nonblank e E/show-ends n/number s/squeeze-blank t T/show-tabs u "
    "v/show-nonprinting" + _HELP,
    "shred": "f/force n/iterations= random-source= s/size= u remove? v/verbose x/exact z/zero"
    + _HELP,
    "truncate": "c/no-create o/io-blocks r/reference= s/size=" + _HELP,
    "kill": "@whole l/list? s/signal= n= q/queue= L/table p/pid a/all" + _HELP,
    "mount": "a/all t/types= o/options= B/bind R/rbind M/move r/read-only w/rw/read-write L/label= "
    "U/uuid= v/verbose n/no-mtab f/fake O/test-opts= T/fstab= N/namespace= source= target= "
    "make-private make-rprivate make-shared make-slave" + _HELP,
    "tar": "@first_bundle A/catenate/concatenate c/create d/diff/compare r/append t/list u/update "
    "x/extract/get f/file= C/directory= z/gzip/gunzip/ungzip j/bzip2 J/xz Z/compress/uncompress "
    "a/auto-compress v/verbose p/preserve-permissions/same-permissions k/keep-old-files O/to-stdout "
    "I/use-compress-program= T/files-from= X/exclude-from= exclude= strip-components= to-command= "
    "checkpoint? checkpoint-action= F/info-script/new-volume-script= rsh-command= "
    "transform/xform= owner= group= mode= P/absolute-names h/dereference b/blocking-factor= "
    "g/listed-incremental= N/newer/after-date= V/label= K/starting-file= L/tape-length= H/format= "
    "W/verify m/touch w/interactive/confirmation o/old-archive numeric-owner same-owner no-same-owner "
    "overwrite wildcards no-recursion remove-files totals? sort= mtime= delete one-file-system zstd lzma "
    "warning= anchored ignore-failed-read S/sparse M/multi-volume l/check-links B R s U G i n"
    + _HELP,
    "sed": "n/quiet/silent e/expression= f/file= i/in-place? E/r/regexp-extended s/separate "
    "u/unbuffered z/null-data l/line-length= b/binary follow-symlinks posix sandbox debug" + _HELP,
    "find": "@single @whole H L P name= iname= path= ipath= wholename= iwholename= regex= iregex= "
    "lname= ilname= type= xtype= maxdepth= mindepth= mtime= atime= ctime= mmin= amin= cmin= newer= "
    "anewer= cnewer= user= group= uid= gid= perm= size= links= inum= samefile= fstype= regextype= "
    "used= context= printf= fprint= fprint0= fls= files0-from= D= delete print print0 ls prune quit "
    "depth d mount xdev follow daystart empty executable readable writable nouser nogroup true false "
    "exec execdir ok okdir o or a and not O",
    # network
    "curl": "a/append A/user-agent= b/cookie= c/cookie-jar= C/continue-at= d/data/data-ascii= "
    "data-binary= data-raw= data-urlencode= json= D/dump-header= e/referer= E/cert= cert-type= key= "
    "cacert= capath= f/fail fail-with-body F/form= form-string= g/globoff G/get h H/header= i/include "
    "I/head j/junk-session-cookies J/remote-header-name k/insecure K/config= l/list-only L/location "
    "location-trusted m/max-time= connect-timeout= n/netrc netrc-file= netrc-optional N/no-buffer "
    "o/output= O/remote-name remote-name-all output-dir= create-dirs p/proxytunnel P/ftp-port= q/disable "
    "Q/quote= r/range= R/remote-time s/silent S/show-error t/telnet-option= T/upload-file= u/user= "
    "U/proxy-user= v/verbose V w/write-out= x/proxy= noproxy= socks5= socks5-hostname= X/request= "
    "y/speed-time= Y/speed-limit= z/time-cond= Z/parallel parallel-max= retry= retry-delay= "
    "retry-max-time= retry-all-errors retry-connrefused resolve= connect-to= interface= limit-rate= "
    "max-filesize= max-redirs= url= unix-socket= abstract-unix-socket= dns-servers= doh-url= "
    "oauth2-bearer= aws-sigv4= pinnedpubkey= proto= proto-default= proto-redir= "
    "ciphers= tls-max= tlsv1.2 tlsv1.3 compressed http1.1 http2 http3 0 1 2 3 4/ipv4 6/ipv6 # "
    "progress-bar trace= trace-ascii= stderr= post301 variable= expand-url= no-progress-meter",
    "wget": "o/output-file= a/append-output= e/execute= i/input-file= B/base= t/tries= "
    "O/output-document= T/timeout= w/wait= Q/quota= P/directory-prefix= U/user-agent= l/level= A/accept= "
    "R/reject= D/domains= I/include-directories= X/exclude-directories= c/continue q/quiet v/verbose "
    "r/recursive N/timestamping b/background d/debug F/force-html k/convert-links m/mirror "
    "p/page-requisites no-clobber H/span-hosts L/relative x/force-directories S/server-response "
    "K/backup-converted E/adjust-extension no-parent no-check-certificate post-data= post-file= "
    "body-data= body-file= method= header= user= password= http-user= http-password= "
    "load-cookies= save-cookies= referer= ca-certificate= certificate= private-key= config= "
    "use-askpass= limit-rate= max-redirect= show-progress progress= spider 4/inet4-only 6/inet6-only "
    "cut-dirs= default-page= dns-timeout= connect-timeout= read-timeout= waitretry= "
    "bind-address= content-disposition restrict-file-names= n",
    "ssh": "@stop:2 B= b= c= D= E= e= F= I= i= J= L= l= m= O= o= P= p= Q= R= S= W= w= 4 6 A a C f G g K k "
    "M N n q s T t V v X x Y y",
    "scp": "3 4 6 A B C O p q r R T v c= D= F= i= J= l= o= P= S= X=",
    "sftp": "4 6 A a C f N p q r v B= b= c= D= F= i= J= l= o= P= R= S= s= X=",
    "rsync": "a/archive v/verbose z/compress r/recursive e/rsh= n/dry-run delete/del delete-after "
    "delete-before delete-during delete-excluded exclude= exclude-from= include= include-from= "
    "files-from= f/filter= F bwlimit= rsync-path= partial P progress T/temp-dir= partial-dir= "
    "M/remote-option= password-file= port= timeout= contimeout= B/block-size= u/update l/links p/perms "
    "t/times g/group o/owner D H/hard-links A/acls X/xattrs x/one-file-system L/copy-links "
    "W/whole-file c/checksum i/itemize-changes h/human-readable q/quiet b/backup backup-dir= "
    "suffix= chmod= chown= usermap= groupmap= log-file= log-file-format= out-format= "
    "link-dest= compare-dest= copy-dest= remove-source-files max-size= min-size= max-delete= info= "
    "debug= stats S/sparse R/relative I/ignore-times O/omit-dir-times J E/executability k/copy-dirlinks "
    "K/keep-dirlinks m/prune-empty-dirs s/secluded-args/protect-args y/fuzzy 4/ipv4 6/ipv6 0/from0 8 C "
    "d/dirs inplace append force existing ignore-existing numeric-ids address= sockopts= "
    "modify-window= @whole",
    # versions and packages
    "git": (
        "@commands C= c= git-dir= work-tree= namespace= exec-path? config-env= super-prefix= "
        "attr-source= list-cmds= p/paginate P/no-pager bare no-replace-objects literal-pathspecs "
        "glob-pathspecs noglob-pathspecs icase-pathspecs no-optional-locks html-path man-path info-path "
        "v/version h/help no-lazy-fetch no-advice @whole",
        _GIT,
    ),
    "gh": "@flat @whole R/repo= b/body= t/title= F= body-file= field= B/base= H/head= l/label= a/assignee= "
    "r/reviewer= m/milestone= p/project= X/method= raw-field= q/jq= json= template= "
    "T= hostname= header= notes= notes-file= n= target= input= cache= L/limit= s/state= S/search= "
    "c= D= color= description= d/draft w/web y/yes squash rebase merge delete-branch admin auto "
    "public private",
    "npm": (_NPM, {"exec": ""}),
    "npx": "@stop:1 p/package= c/call= y/yes no/no-install q/quiet w/workspace= workspaces/ws "
    "include-workspace-root shell= shell-auto-fallback= n/node-arg= prefix= registry= userconfig= cache= "
    "ignore-existing prefer-offline prefer-online",
    "pnpm": "@flat @rename:i>install,rm>remove,un>remove,uninstall>remove,up>update,upgrade>update,"
    "x>exec,ls>list,t>test,ln>link "
    "C/dir= F/filter= filter-prod= r/recursive w/workspace-root workspace-concurrency= D/save-dev "
    "P/save-prod O/save-optional E/save-exact g/global reporter= loglevel= registry= tag= otp= access= "
    "publish-branch= store-dir= lockfile-dir= modules-dir= no-git-checks package= c/shell-mode "
    "use-node-version= config= dry-run force json ignore-scripts frozen-lockfile offline silent s",
    "yarn": "@flat cwd= modules-folder= cache-folder= registry= network-timeout= W/ignore-workspace-root-check "
    "D/dev P/peer O/optional E/exact T/tilde tag= otp= access= new-version= non-interactive "
    "use-yarnrc= mutex= production? frozen-lockfile offline silent s verbose json no-progress "
    "ignore-scripts immutable mode= A/all R/recursive p/package= c/caret",
    "pip": "@flat isolated require-virtualenv python= v/verbose q/quiet log/log-file= no-input "
    "keyring-provider= proxy= retries= timeout= exists-action= trusted-host= cert= client-cert= "
    "cache-dir= no-cache-dir disable-pip-version-check no-color use-feature= use-deprecated= debug "
    "r/requirement= c/constraint= no-deps pre e/editable= dry-run t/target= platform= python-version= "
    "implementation= abi= user root= prefix= src= U/upgrade upgrade-strategy= force-reinstall "
    "I/ignore-installed no-build-isolation use-pep517 config-settings= C= global-option= "
    "no-compile compile no-binary= only-binary= prefer-binary require-hashes "
    "progress-bar= root-user-action= report= no-clean i/index-url/pypi-url= extra-index-url= no-index "
    "f/find-links= d/dest/dest-dir= w/wheel-dir= y/yes group= format= o/outdated l/local "
    "path= exclude= break-system-packages build-constraint=" + _HELP,
    "uv": (
        "@flat directory= project= cache-dir= p/python= config-file= color= i/index-url= "
        "extra-index-url= default-index= index= f/find-links= r/requirements/requirement= "
        "c/constraints/constraint= with= with-editable= with-requirements= extra= group= "
        "only-group= no-group= e/editable= t/token= publish-url= check-url= u/username= password= "
        "P/upgrade-package= U/upgrade q/quiet v/verbose n/no-cache o/output-file= resolution= prerelease= "
        "exclude-newer= link-mode= refresh-package= reinstall-package= no-binary= no-build-package= "
        "C/config-setting= package= target= prefix= env-file= m/module from= python-platform= "
        "keyring-provider= allow-insecure-host= trusted-publishing= isolated frozen locked offline "
        "system s/script no-project no-sync all-extras dev no-dev build-constraint= override= "
        "active bump= bounds= tag= branch= rev= marker= script-path=",
        {"run": "@stop:1", "tool": "@stop:2"},
    ),
    "uvx": "@stop:1 from= with= with-editable= with-requirements= p/python= i/index-url= index= "
    "default-index= extra-index-url= f/find-links= c/constraints= directory= project= cache-dir= "
    "config-file= isolated q/quiet v/verbose n/no-cache offline U/upgrade env-file= color=",
    "poetry|pipenv|pdm|hatch|rye|bundle": "@flat C/directory= P/project= q/quiet v/verbose "
    "n/no-interaction e= r= u/username= p/password=",
    "cargo": "@flat @toolchain @whole @rename:b>build,c>check,d>doc,t>test,r>run,rm>remove "
    "p/package= bin= example= test= bench= F/features= j/jobs= profile= target= target-dir= "
    "manifest-path= message-format= color= config= Z= C= registry= index= token= git= branch= tag= "
    "rev= path= version/vers= root= r/release v/verbose q/quiet all-features no-default-features "
    "workspace/all exclude= allow-dirty n/dry-run no-verify frozen locked offline f/force lib bins "
    "tests examples all-targets fix edition= x/execute name= rename= optional dev build undo no-run no-fail-fast",
    "go": "@flat @single @whole C= tags= ldflags= gcflags= asmflags= gccgoflags= o= mod= modfile= overlay= "
    "run= bench= count= timeout= cpu= parallel= p= coverprofile= covermode= coverpkg= exec= toolexec= "
    "pkgdir= buildmode= compiler= installsuffix= vet= fuzz= fuzztime= benchtime= blockprofile= "
    "cpuprofile= memprofile= outputdir= list= skip= shuffle= f= go= json v x n a race msan asan work "
    "trimpath i u t d m e c short failfast cover w",
    "make": "C/directory= f/file/makefile= I/include-dir= j/jobs#? k/keep-going n/just-print/dry-run/recon "
    "o/old-file/assume-old= W/what-if/new-file/assume-new= B/always-make e/environment-overrides "
    "E/eval= i/ignore-errors l/load-average/max-load#? p/print-data-base q/question r/no-builtin-rules "
    "R/no-builtin-variables s/silent/quiet S/no-keep-going/stop t/touch w/print-directory "
    "no-print-directory O output-sync? d debug? trace warn-undefined-variables shuffle? b m L "
    "no-silent jobserver-style=" + _HELP,
    "mvn|mvnw|mvnd": "@single @whole f/.--file= pl/.--projects= am/.--also-make amd/.--also-make-dependents "
    "T/.--threads= P/.--activate-profiles= s/.--settings= gs/.--global-settings= t/.--toolchains= "
    "gt/.--global-toolchains= D/.--define= l/.--log-file= rf/.--resume-from= b/.--builder= "
    "color= .--color= o/.--offline q/.--quiet X/.--debug e/.--errors U/.--update-snapshots "
    "B/.--batch-mode N/.--non-recursive V/.--show-version v/.--version h/.--help ff/.--fail-fast "
    "fae/.--fail-at-end fn/.--fail-never C/.--strict-checksums c/.--lax-checksums nsu/.--no-snapshot-updates "
    "ntp/.--no-transfer-progress emp/.--encrypt-master-password= ep/.--encrypt-password= "
    "llr/.--legacy-local-repository itr/.--ignore-transitive-repositories",
    "gradle|gradlew": "@whole p/project-dir= b/build-file= c/settings-file= I/init-script= x/exclude-task= "
    "g/gradle-user-home= P/project-prop= D/system-prop= F/dependency-verification= M/write-verification-metadata= "
    "include-build= console= max-workers= warning-mode= priority= project-cache-dir= tests= t/continuous "
    "a/no-rebuild continue daemon no-daemon foreground status stop m/dry-run U/refresh-dependencies "
    "refresh-keys export-keys rerun-tasks offline q/quiet w/warn i/info d/debug s/stacktrace "
    "S/full-stacktrace scan no-scan build-cache no-build-cache parallel no-parallel configure-on-demand "
    "no-configure-on-demand configuration-cache no-configuration-cache profile update-locks= write-locks "
    "no-watch-fs watch-fs configuration= dependency= args= v/version V/show-version h/help",
    "hg": "@flat R/repository= cwd= y/noninteractive q/quiet v/verbose color= config= debug debugger encoding= "
    "encodingmode= traceback time profile version hidden pager= r/rev= b/branch= B/bookmark= f/force "
    "e/ssh= remotecmd= m/message= u/user= d/date= I/include= X/exclude= new-branch insecure h/help",
    "jj": "@flat R/repository= at-operation/at-op= config= config-file= color= quiet no-pager "
    "ignore-working-copy ignore-immutable debug b/bookmark= remote= r/revisions/revision= c/change= "
    "m/message= all tracked deleted dry-run N/allow-new h/help",
    "twine": "@flat r/repository= repository-url= s/sign sign-with= i/identity= u/username= p/password= "
    "c/comment= config-file= skip-existing cert= client-cert= verbose non-interactive "
    "disable-progress-bar attestations strict no-color",
    "gem": "@flat @rename:pu>push,pus>push,y>yank,ya>yank,yan>yank,i>install,ins>install,inst>install,"
    "insta>install,instal>install,o>owner,ow>owner,own>owner,owne>owner "
    "k/key= host= otp= v/version= platform= i/install-dir= n/bindir= f/force s/source= p/http-proxy? "
    "P/trust-policy= D document= N/no-document user-install norc config-file= q/quiet V/verbose l/local "
    "r/remote b/both a/add= g/file? E/env-shebang w/wrappers x a/all I d",
    "apt": _APT,
    "dpkg": "i/install R/recursive r/remove P/purge L/listfiles l/list s/status S/search a/pending "
    "configure unpack update-avail root= admindir= instdir= force-all force-depends force-overwrite "
    "D/debug? V/verify C/audit get-selections set-selections clear-selections B E G O no-act "
    "simulate dry-run contents c/contents e/control x/extract X/vextract b/build I/info "
    "add-architecture remove-architecture print-architecture print-avail p p/print-avail",
    # what runs elsewhere
    "docker": (
        "@commands @whole @rename:container>,image>,buildx>,builder> "
        "H/host= c/context= D/debug l/log-level= config= tls tlscacert= tlscert= tlskey= tlsverify "
        "v/version",
        _DOCKER,
    ),
    "podman": (
        "@commands @whole @rename:container>,image>,buildx> c/connection= url= log-level= root= runroot= "
        "identity= cgroup-manager= storage-driver= storage-opt= tmpdir= runtime= runtime-flag= "
        "conmon= network-cmd-path= hooks-dir= events-backend= module= volumepath= out= r/remote v/version "
        "syslog noout ssh= namespace= transient-store",
        _DOCKER,
    ),
    "helm": "@flat @whole @rename:del>uninstall,delete>uninstall,un>uninstall n/namespace= kube-context= "
    "kubeconfig= kube-apiserver= kube-as-user= kube-as-group= kube-token= kube-ca-file= "
    "kube-tls-server-name= registry-config= repository-cache= repository-config= burst-limit= qps= "
    "debug f/values= set= set-string= set-file= set-json= version= timeout= wait atomic dry-run? "
    "i/install create-namespace g/generate-name repo= username= password= ca-file= cert-file= "
    "key-file= o/output= description= reuse-values reset-values force" + _HELP,
    "gcloud": "@flat @rename:alpha>,beta>,preview> project= account= configuration= format= verbosity= "
    "q/quiet impersonate-service-account= billing-project= access-token-file= flags-file= flatten= "
    "trace-token= log-http user-output-enabled? region= zone= version= v= image= source= promote "
    "no-promote" + _HELP,
    "kubectl": "@flat @whole n/namespace= context= cluster= user= kubeconfig= s/server= token= as= as-group= "
    "as-uid= certificate-authority= client-certificate= client-key= cache-dir= request-timeout= "
    "tls-server-name= username= password= insecure-skip-tls-verify f/filename= k/kustomize= o/output= "
    "l/selector= A/all-namespaces all force grace-period= dry-run? now timeout= wait c/container= "
    "i/stdin t/tty R/recursive field-selector= sort-by= template= v= L/label-columns= w/watch "
    "show-labels p/patch= type= replicas= image= env= labels= port= target-port= tail= since= "
    "previous overwrite record field-manager= server-side cascade? restart= rm command q/quiet address=",
    "terraform|tofu": "@flat @single @whole chdir= version help v h var= var-file= out= target= replace= state= state-out= "
    "backup= parallelism= lock= lock-timeout= input= refresh= refresh-only destroy auto-approve no-color "
    "compact-warnings detailed-exitcode json backend-config= backend= from-module= plugin-dir= upgrade "
    "reconfigure migrate-state force-copy get= lockfile= generate-config-out= exclude=",
    "vercel": "@flat @whole prod y/yes t/token= S/scope= T/team= cwd= A/local-config= Q/global-config= e/env= b/build-env= "
    "m/meta= f/force d/debug prebuilt public no-wait n/name= target= archive= logs no-color skip-domain "
    "v/version h/help",
    "systemctl": "t/type= p/property= H/host= M/machine= user system now f/force q/quiet no-block "
    "no-pager root= a/all l/full r/recursive s/signal= kill-whom= kill-who= n/lines= o/output= state= "
    "runtime job-mode= preset-mode= no-ask-password no-wall no-reload global show-types value P= what= "
    "wait i/ignore-inhibitors check-inhibitors= message= firmware-setup plain legend= no-legend "
    "T/show-transaction drop-in= when= image= boot-loader-menu= boot-loader-entry= timestamp= marked "
    "dry-run" + _HELP,
    # interpreters
    "python": "@stop:1 @whole c=! m=! b B d E h i I O q s S u v V W= X= x P .--check-hash-based-pycs=",
    "node": "@stop:1 @whole e/eval= p/print= pe= r/require= import= loader/experimental-loader= c/check "
    "i/interactive inspect? inspect-brk? input-type= env-file= C/conditions= v/version h/help test watch "
    "watch-path= title= test-name-pattern= max-old-space-size=",
    "perl": "@stop:1 @whole e= E= n p i? I= M= m= w W T t U u v V x? F? l a c C? d? D? s S X h",
    "ruby": "@stop:1 @whole e= n p i? I= r= w W? v C= E= F? l a c x? s S d h K? T? 0? enable= disable= "
    "encoding= external-encoding= internal-encoding= jit yjit verbose version copyright",
    "bash": _SHELL,
    "awk": "@stop:1 F/field-separator= v/assign= f/file= e/source= i/include= E/exec= l/load= W= "
    "b c C d? D? g h I k L? M n N o? O p? P r s S t V",
    # what runs another command
    "sudo": "@stop:1 A/askpass b/background B/bell C/close-from= D/chdir= E preserve-env? e/edit "
    "g/group= H/set-home h/host= K/remove-timestamp k/reset-timestamp i/login l/list "
    "n/non-interactive N/no-update P/preserve-groups p/prompt= R/chroot= r/role= S/stdin s/shell "
    "T/command-timeout= t/type= U/other-user= u/user= V/version v/validate help",
    "doas": "@stop:1 @whole C= L n s u= a=",
    "su": "l/login c/command= session-command= f/fast g/group= G/supp-group= m/p/preserve-environment "
    "P/pty T/no-pty s/shell= w/whitelist-environment=" + _HELP,
    "runuser": "@stop:1 u/user= l/login c/command= session-command= f/fast g/group= G/supp-group= "
    "m/p/preserve-environment P/pty T/no-pty s/shell= w/whitelist-environment=" + _HELP,
    "env": "@stop:1 i/ignore-environment 0/null u/unset= C/chdir= S/split-string= v/debug "
    "block-signal? default-signal? ignore-signal? list-signal-handling a/argv0=" + _HELP,
    "xargs": "@stop:1 0/null a/arg-file= d/delimiter= E= e? eof? I= i? replace? L= l? max-lines? "
    "n/max-args= P/max-procs= p/interactive r/no-run-if-empty s/max-chars= t/verbose x/exit o/open-tty "
    "process-slot-var= show-limits" + _HELP,
    "nice": "@stop:1 n/adjustment= 0 1 2 3 4 5 6 7 8 9" + _HELP,
    "ionice": "@stop:1 c/class= n/classdata= p/pid= P/pgid= t/ignore u/uid=" + _HELP,
    "chrt": "@stop:1 b/batch d/deadline f/fifo i/idle o/other r/rr R/reset-on-fork T/sched-runtime= "
    "P/sched-period= D/sched-deadline= a/all-tasks m/max p/pid v/verbose e/ext" + _HELP,
    "taskset": "@stop:1 a/all-tasks c/cpu-list p/pid" + _HELP,
    "timeout": "@stop:1 f/foreground k/kill-after= s/signal= v/verbose preserve-status p" + _HELP,
    "nohup|eatmydata|fakeroot|unbuffer|catchsegv|dumb-init|dbus-run-session|ltrace|valgrind|catatonit": "@stop:1"
    + _HELP,
    "setsid": "@stop:1 c/ctty f/fork w/wait" + _HELP,
    "stdbuf": "@stop:1 i/input= o/output= e/error=" + _HELP,
    "time": "@stop:1 a/append f/format= o/output= p/portability v/verbose q/quiet" + _HELP,
    "watch": "@stop:1 b/beep c/color C/no-color d/differences? e/errexit g/chgexit n/interval= "
    "p/precise q/equexit= r/no-rerun s/shotsdir= t/no-title w/no-wrap x/exec f/follow" + _HELP,
    "parallel": "@stop:1 j/jobs/P= a/arg-file= I= N/max-replace-args= n/max-args= L= X m k/keep-order "
    "q/quote d/delimiter= C/colsep= E= 0/null t/verbose v u/ungroup S/sshlogin= slf= joblog= "
    "results= tmpdir= delay= timeout= retries= halt= load= nice= tag tagstring= bar progress eta "
    "dry-run dryrun pipe block= recstart= recend= env= workdir/wd= shuf will-cite max-lines? "
    "r/no-run-if-empty x/exit s/max-chars= l? i? linebuffer/lb line-buffer colour",
    "flock": "@stop:1 c/command= E/conflict-exit-code= F/no-fork e/x/exclusive n/nb/nonblock o/close "
    "s/shared u/unlock w/wait/timeout= verbose fcntl" + _HELP,
    "script": "a/append c/command= E/echo= e/return f/flush force B/log-io= I/log-in= O/log-out= "
    "T/log-timing= m/logging-format= o/output-limit= q/quiet t? timing?" + _HELP,
    "chroot": "@stop:1 groups= userspec= skip-chdir" + _HELP,
    "unshare": "@stop:1 m? mount? u? uts? i? ipc? n? net? p? pid? U? user? C? cgroup? T? time? f/fork "
    "r/map-root-user c/map-current-user map-auto map-user= map-users= map-group= map-groups= "
    "map-subids keep-caps kill-child? mount-proc? mount-binfmt? propagation= setgroups= R/root= w/wd= "
    "S/setuid= G/setgid= monotonic= boottime= l/load-interp=" + _HELP,
    "nsenter": "@stop:1 a/all t/target= m? mount? u? uts? i? ipc? n? net? p? pid? U? user? C? cgroup? T? "
    "time? S/setuid? G/setgid? r? root? w? wd? W= wdns= F/no-fork Z/follow-context e/env "
    "preserve-credentials keep-caps user-parent c join-cgroup N/net-socket=" + _HELP,
    "systemd-run": "@stop:1 user system scope u/unit= p/property= description= slice= slice-inherit "
    "r/remain-after-exit send-sighup service-type= uid= gid= nice= working-directory= d/same-dir "
    "E/setenv= t/pty T/pty-late P/pipe q/quiet G/collect S/shell H/host= M/machine= no-block wait "
    "path-property= socket-property= timer-property= on-active= on-boot= on-startup= "
    "on-unit-active= on-unit-inactive= on-calendar= on-clock-change on-timezone-change "
    "no-ask-password background= json= expand-environment= job-mode= ignore-failure v/verbose"
    + _HELP,
    "strace": "@stop:1 A b= c C d D e= E= f F h i I= k n o= O= p= P= q r s= S= t T u= U= v V w x X= y Y z Z a= "
    "trace= decode-fds? follow-forks output= string-limit= user= env= seccomp-bpf status= "
    "inject= kill-on-exit summary summary-only",
    "setpriv": "@stop:1 clear-groups groups= inh-caps= ambient-caps= bounding-set= keep-groups init-groups "
    "list-caps no-new-privs/nnp rgid= ruid= egid= euid= regid= reuid= securebits= pdeathsig= "
    "ptracer= selinux-label= apparmor-profile= landlock-access= landlock-rule= seccomp-filter= reset-env d",
    "prlimit": "@stop:1 p/pid= o/output= noheadings raw verbose c? core? d? data? e? nice? f? fsize? "
    "i? sigpending? l? memlock? m? rss? n? nofile? q? msgqueue? r? rtprio? s? stack? t? cpu? u? nproc? "
    "v? as? x? locks? y? rttime?" + _HELP,
    "setarch": "@stop:1 v/verbose R/addr-no-randomize F/fdpic-funcptrs Z/mmap-page-zero "
    "L/addr-compat-layout X/read-implies-exec B/32bit I/short-inode S/whole-seconds "
    "T/sticky-timeouts 3 uname-2.6 4gb list show? p/pid=" + _HELP,
    "numactl": "@stop:1 a/all i/interleave= p/preferred= P/preferred-many= m/membind= w/weighted-interleave= "
    "N/cpunodebind= C/physcpubind= l/localalloc b/balancing s/show H/hardware",
    "cpulimit": "@stop:1 p/pid= e/exe= P/path= l/limit= c/cpu= b/background f/foreground z/lazy i/include-children "
    "v/verbose q/quiet k/kill m/monitor-forks h/help",
    "pkexec": "@stop:1 user= disable-internal-agent keep-cwd" + _HELP,
    "gosu|su-exec": "@stop:1",
    "tini": "@stop:1 @whole p= s v w g l e= h version",
    "xvfb-run": "@stop:1 a/auto-servernum e/error-file= f/auth-file= n/server-num= l/listen-tcp "
    "p/xauth-protocol= s/server-args= w/wait= h/help",
    "gdb": "@stop:1 @single @whole args! .--args! ex= .--ex= x= .--command= batch .--batch q .--quiet nx "
    ".--nx p= .--pid= cd=",
    "exec": "@stop:1 a= c l",
    "command": "@stop:1 p v V",
    # ld.so(8)
    "ld.so": "@stop:1 @whole list verify inhibit-cache library-path= inhibit-rpath= audit= preload= "
    "argv0= list-tunables list-diagnostics glibc-hwcaps-prepend= glibc-hwcaps-mask=" + _HELP,
}

#: other names of programs that a table holds for
SAME: Final = (
    ("chgrp", "chown"),
    ("sh dash ash ksh mksh zsh rbash fish yash posh lksh", "bash"),
    ("pip3 pipx", "pip"),
    ("python2 python3 pypy pypy3", "python"),
    ("nodejs bun deno", "node"),
    ("apt-get aptitude", "apt"),
    ("gmake", "make"),
    ("gawk mawk nawk", "awk"),
    ("gtar bsdtar", "tar"),
    ("gsed", "sed"),
    ("linux32 linux64 i386 x86_64", "setarch"),
)
