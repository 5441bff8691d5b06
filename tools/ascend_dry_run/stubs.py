"""CANN libraries that do nothing, made from what MindSpore's Ascend plugin asks for.

The wheel of MindSpore for x86-64 holds the whole Ascend back end; what it lacks is CANN. Every symbol that the plugin
leaves undefined, or looks up by its name, becomes a function that returns 0, a handle or an empty object. Nothing is
computed, and nothing is checked by CANN.
"""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from ospnext_ms.planning.ascend_checks import SUPPORTED

SOC = "Ascend910B1"
CANN_VERSION = "9.0.0"
# Sizes in bytes of CANN's graph-engine objects, whose constructors only have to leave zeros.
GE_BYTES = {"Operator": 24, "TensorDesc": 16, "Tensor": 16, "Shape": 16, "AscendString": 16, "Graph": 24, "Session": 16,
            "OperatorFactory": 0}
# Libraries that the plugin opens by name.
OPENED = ("libhccl.so", "libacl_op_compiler.so", "libacl_tdt_channel.so", "libmsprofiler.so", "libruntime.so",
          "libacl_rt.so", "libprofapi.so", "libhcomm.so", "libacl_mdl.so")
OPERATOR_LIBRARIES = ("libopapi.so", "libnnopbase.so", "libcust_opapi.so", "libaclnn_ops_infer.so", "libaclnn_math.so",
                      "libopapi_math.so", "libopapi_nn.so", "libopapi_transformer.so", "libopapi_cv.so")
# What every aclnn operator library has beside its operators.
OPERATOR_BASE = """
    aclnnInit aclnnFinalize aclCreateTensor aclDestroyTensor aclCreateScalar aclDestroyScalar aclCreateIntArray
    aclDestroyIntArray aclCreateFloatArray aclDestroyFloatArray aclCreateBoolArray aclDestroyBoolArray
    aclCreateTensorList aclDestroyTensorList aclCreateScalarList aclDestroyScalarList
    aclSetAclOpExecutorRepeatable aclDestroyAclOpExecutor aclSetTensorAddr aclSetDynamicTensorAddr
    aclSetInputTensorAddr aclSetOutputTensorAddr aclSetDynamicInputTensorAddr aclSetDynamicOutputTensorAddr
    InitHugeMemThreadLocal UnInitHugeMemThreadLocal ReleaseHugeMem InitPTACacheThreadLocal SetPTAHashKey
    CanUsePTACache PTAGetExecCache PTAFindExecCache InitPTACacheThreadLocalV2 SetPTAHashKeyV2 PTAGetExecCacheV2
    PTAFindExecCacheV2 AddTensorAddrToCachedList aclDumpOpTensors SetDumpMode
""".split()  # noqa: SIM905  (a column of names)
# The system's own libraries, whose symbols need no stubs.
SYSTEM = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1", "libz.so.1",
          "ld-linux-x86-64.so.2")
_BY_NAME = re.compile(r"(acl(?!nn)[A-Za-z]*[A-Z]\w*|Hccl[A-Z]\w*|Hcom[A-Z]\w*|rt[A-Z]\w*|aml[A-Z]\w*|Msprof[A-Z]\w*"
                      r"|mstx\w+|acltdt\w+|aclopCreate\w*)")
_OURSELVES = ("Py", "_Py", "__cxa", "_ITM", "__gmon", "GOMP", "omp_")
_RETURN_0 = " xorl %eax,%eax\n ret\n"


def prepare_stubs():
    """Folder of the stubs for the installed MindSpore, made where it is not there yet (half a minute).

    Raises:
        OSError: a machine on which they cannot be made, with what it needs.
    """
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise OSError(f"the dry run needs MindSpore's wheel for Linux on x86-64, this is {sys.platform} on "
                      f"{platform.machine()}; run it on such a machine")
    wanted, found = SUPPORTED["mindspore"], version("mindspore")
    if not found.startswith(f"{wanted}."):
        raise OSError(f"the dry run's stubs are for MindSpore {wanted}, here is {found}, which crashes on them; "
                      f"install {wanted}")
    missing = [tool for tool in ("gcc", "nm", "readelf", "strings", "c++filt") if shutil.which(tool) is None]
    if missing:
        raise OSError(f"the dry run needs {', '.join(missing)}; install gcc and binutils")
    root = Path(sys.prefix) / f"ascend_stubs-{_key()}"
    if not (root / "done").is_file():
        print(f"making stub CANN libraries in {root} ...", file=sys.stderr, flush=True)
        _Builder(root).build()
        (root / "done").touch()
    return root


def environment(root, rank=0, size=1):
    """Environment variables with which a process compiles for Ascend as rank `rank` of `size`."""
    cann = str(root / "ascend-toolkit" / "latest")
    paths = [str(root / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "LD_LIBRARY_PATH": f"{cann}/lib64", "ASCEND_HOME_PATH": cann,
            "ASCEND_OPP_PATH": f"{cann}/opp", "PYTHONPATH": os.pathsep.join(paths), "MS_SIMULATION_LEVEL": "1",
            "RANK_ID": str(rank), "RANK_SIZE": str(size), "MS_WORKER_NUM": str(size), "GLOG_v": "1"}


def _key():
    """Changes with the wheel and with this file."""
    own = Path(__file__).read_bytes()
    return f"{version('mindspore')}-{hashlib.sha256(own).hexdigest()[:12]}"


def _output(*command, text=None):
    return subprocess.run(command, capture_output=True, text=True, input=text, errors="ignore").stdout


def _symbols(path, which):
    lines = _output("nm", "-D", which, str(path)).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line.strip()}


class _Builder:
    """Makes one folder of stubs."""

    def __init__(self, root):
        self.root, self.lib = root, root / "cann" / "lib64"
        self.package = Path(importlib.util.find_spec("mindspore").origin).parent
        plugin = self.package / "lib" / "plugin"
        self.plugins = [plugin / "libmindspore_ascend.so.2", plugin / "libmindspore_ops_ascend.so",
                        *sorted((plugin / "ascend").rglob("*.so"))]
        own = [*self.plugins, *(self.package / "lib").glob("*.so*"), *self.package.glob("_c_expression*.so"),
               *plugin.glob("*.so*")]
        self.own = list(dict.fromkeys(own))
        self.system = [path for name in SYSTEM for path in Path("/lib/x86_64-linux-gnu").glob(name)]

    def build(self):
        """Writes everything."""
        self.lib.mkdir(parents=True, exist_ok=True)
        strings = {line for path in self.own for line in _output("strings", "-n", "5", str(path)).split("\n")}
        self._runtime_library(strings)
        self._operator_libraries(strings)
        self._folders()

    def _runtime_library(self, strings):
        defined = set().union(*(_symbols(path, "--defined-only") for path in (*self.own, *self.system)))
        wanted, needed = set(), set()
        for plugin in self.plugins:
            undefined = _symbols(plugin, "--undefined-only")
            wanted |= {name for name in undefined if name not in defined and not name.startswith(_OURSELVES)}
            needed |= set(re.findall(r"NEEDED.*\[(.+?)\]", _output("readelf", "-d", str(plugin))))
        by_name = {text for text in strings if _BY_NAME.fullmatch(text) and not text.endswith("_")}
        data = sorted(name for name in wanted if name.startswith(("_ZTI", "_ZTV", "_ZTS", "_ZGV", "_ZZ")))
        functions = sorted((wanted | by_name) - set(data))
        demangled = _output("c++filt", text="\n".join(functions)).split("\n")
        lines = [".text"]
        for name, full in zip(functions, demangled, strict=False):
            is_handle = name in by_name and name not in wanted and "Create" in name
            lines.append(f".globl {name}\n.type {name},@function\n{name}:\n{_body(name, full, is_handle)}")
        lines.append(".data\n.align 16\nempty_text: .quad 0,0\n .quad 0x7fffffff\n .quad 0\n .zero 64\n"
                     f'handle: .zero 4096\nsoc_name: .asciz "{SOC}"')
        lines += [f".globl {name}\n.type {name},@object\n.size {name},256\n{name}: .zero 256" for name in data]
        self._link("libascendcl.so", "runtime.s", lines)
        (self.lib / "empty.c").write_text("int stub;\n")
        have = {path.name for path in (*self.own, *self.system)}
        folders = (Path("/lib/x86_64-linux-gnu"), Path("/usr/lib/x86_64-linux-gnu"))
        absent = {name for name in needed - have if not any((folder / name).exists() for folder in folders)}
        for name in sorted({*absent, *OPENED} - {"libascendcl.so"}):
            self._gcc(name, self.lib / "empty.c", "-Wl,--no-as-needed", str(self.lib / "libascendcl.so"),
                      f"-Wl,-rpath,{self.lib}")

    def _operator_libraries(self, strings):
        operators = {found for text in strings for found in re.findall(r"aclnn[A-Z]\w*", text)}
        for header in (self.package / "include/mindspore/ops/kernel/ascend/aclnn").rglob("*.h"):
            text = header.read_text(errors="ignore")
            operators |= set(re.findall(r"aclnn[A-Z]\w*", text))
            operators |= {f"aclnn{name}" for name in re.findall(r"class (\w+?)Ascend\b", text)}
        operators = {name.removesuffix("GetWorkspaceSize") for name in operators}
        names = {*OPERATOR_BASE, *(name + end for name in operators for end in ("", "GetWorkspaceSize"))}
        lines = [".text"]
        for name in sorted(names):
            is_handle = name.startswith("aclCreate") or name.endswith("ExecCache")
            body = " leaq dummy(%rip),%rax\n ret\n" if is_handle else _RETURN_0
            lines.append(f".globl {name}\n.type {name},@function\n{name}:\n{body}")
        lines.append(".data\n.align 16\ndummy: .zero 4096")
        for name in OPERATOR_LIBRARIES:
            self._link(name, "operators.s", lines)

    def _folders(self):
        """What CANN's installation has beside its libraries, and its Python packages."""
        (self.root / "cann" / "compiler").mkdir(exist_ok=True)
        (self.root / "cann" / "compiler" / "version.info").write_text(f"Version={CANN_VERSION}\n")
        (self.root / "ascend-toolkit").mkdir(exist_ok=True)
        latest = self.root / "ascend-toolkit" / "latest"
        if not latest.is_symlink():
            latest.symlink_to("../cann")
        for package in ("hccl", "hccl/manage", "hccl/sys_config"):
            folder = self.root / "python" / package
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text("")
        (self.root / "python" / "hccl" / "sys_version.py").write_text(f'__sys_version__ = "{CANN_VERSION}"\n')

    def _link(self, library, source, lines):
        path = self.lib / source
        path.write_text("\n".join([*lines, '.section .note.GNU-stack,"",@progbits']) + "\n")
        self._gcc(library, path)

    def _gcc(self, library, source, *more):
        subprocess.run(["gcc", "-shared", "-o", str(self.lib / library), str(source), f"-Wl,-soname,{library}", *more],
                       check=True)


def _body(name, full, is_handle):
    """Assembler of a stub; `full` is its C++ name."""
    member = re.match(r"ge::(\w+)::(\w+)\(", full)
    if name == "aclrtGetSocName":
        return " leaq soc_name(%rip),%rax\n ret\n"
    if member and member[1] == member[2]:
        return "".join(f" movq $0,{offset}(%rdi)\n" for offset in range(0, GE_BYTES.get(member[1], 16), 8)) + " ret\n"
    if member and re.search(r"::(GetName|GetOpType)\(\) const", full):
        return " leaq empty_text+24(%rip),%rax\n movq %rax,(%rdi)\n movq %rdi,%rax\n ret\n"
    returns_object = re.search(r"::(GetShape|GetTensorDesc|GetOriginShape|GetDims)\(\) const"
                               r"|OperatorFactory::CreateOperator|Get(Dynamic)?(Input|Output)Desc|GetTensorDesc", full)
    if full.startswith("ge::") and returns_object:
        third = " movq $0,16(%rdi)\n" if "GetDims" in full or "CreateOperator" in full else ""
        return f" movq $0,(%rdi)\n movq $0,8(%rdi)\n{third} movq %rdi,%rax\n ret\n"
    if member and member[1] == "Operator" and re.search(r"::(Set\w+|Update\w+|Attr\w+)\(", full):
        return " movq %rdi,%rax\n ret\n"
    if is_handle and not name.startswith(("aclrt", "Hccl", "rt")):
        return " leaq handle(%rip),%rax\n ret\n"
    return _RETURN_0
