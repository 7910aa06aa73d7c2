#include "kernels/engine/manifest.h"

#include <algorithm>
#include <memory>

#include <sys/stat.h>

#include "kernels/engine/error.h"
#include "kernels/engine/json.h"
#include "kernels/engine/mapped_file.h"
#include "kernels/engine/sha256.h"

namespace edgellm {
namespace {

constexpr int64_t kSchema = 1;     // of edgellm.json: runtime/manifest.py
constexpr off_t kLargest = 1 << 26;  // bytes of a manifest; the real ones are under 100 kB

Error edited() { return bundle_error(std::string(kManifest) + " is damaged or was edited: its checksum does not match its contents"); }

void check_place(const std::string& folder) {
  struct stat facts {};
  if (stat(folder.c_str(), &facts))
    throw bundle_error("no bundle at " + folder + ": the folder does not exist",
                       "Check the path, or make one: edgellm export SOURCE " + folder);
  if (!S_ISDIR(facts.st_mode)) {
    throw bundle_error(folder + " is a file; a bundle is a folder", "Export it first: edgellm export " + folder + " OUT");
  }
  const size_t last = folder.find_last_not_of('/') + 1;
  if (last >= 8 && folder.substr(last - 8, 8) == ".partial")
    throw bundle_error(folder + " is an unfinished export", std::string("Delete it. ") + kAgain);
  if (stat((folder + "/" + kManifest).c_str(), &facts) || !S_ISREG(facts.st_mode))
    throw bundle_error(folder + " is not a bundle: " + kManifest + " is missing");
  if (facts.st_size > kLargest)
    throw bundle_error(std::string(kManifest) + " is damaged: " + std::to_string(facts.st_size) + " bytes is larger than any manifest");
}

// Compared first, since another version may be checked by other rules.
void check_version(const Json& data, const char* what, int64_t ours) {
  const int64_t theirs = data[what].integer();
  if (theirs == ours) return;
  throw bundle_error(std::string(kManifest) + " has " + what + " version " + std::to_string(theirs) + "; this edgellm reads version " +
                         std::to_string(ours),
                     theirs > ours ? "Upgrade this edgellm: pip install -U edgellm" : kAgain);
}

void check_file(const std::string& folder, const std::string& name, const Json& expected, bool hashed) {
  struct stat facts {};
  if (name.empty() || name.find('/') != std::string::npos || stat((folder + "/" + name).c_str(), &facts) || !S_ISREG(facts.st_mode))
    throw bundle_error(name + " is missing from " + folder, std::string("Copy the bundle again. ") + kAgain);
  const int64_t size = facts.st_size, wanted = expected["bytes"].integer();
  if (size != wanted)
    throw bundle_error(name + " is " + (size < wanted ? "truncated" : "damaged") + ": " + std::to_string(size) + " bytes, " + kManifest +
                       " says " + std::to_string(wanted));
  if (hashed && sha256_of_file(folder, name) != expected["sha256"].string())
    throw bundle_error(name + " is damaged or was edited: its SHA-256 is not the one in " + kManifest);
}

void check_files(const std::string& folder, const Json& files, bool verify) {
  for (const char* name : {kGraph, kWeights})
    if (!files.find(name)) throw bundle_error(std::string(kManifest) + " does not list " + name + ", which every bundle has");
  // What is not read here (tokenizer.json, the chat template) need not be hashed here.
  for (const auto& [name, facts] : files.members())
    check_file(folder, name, facts, verify || name == kGraph || name == kTables);
}

int64_t size_of(const Json& model, const char* name) {
  const int64_t size = model[name].integer();
  if (size < 1 || size >= int64_t(1) << 31)
    throw JsonError("\"model." + std::string(name) + "\" is " + std::to_string(size) + "; expected a size from 1 to 2**31 - 1");
  return size;
}

size_t bytes_of(const Json& bytes) {
  if (bytes.integer() < 0) throw JsonError("\"matrices\" has a place or a size of " + std::to_string(bytes.integer()));
  return size_t(bytes.integer());
}

KVPolicy default_policy(const Json& kv, const Manifest& m) {
  Settings settings;
  for (const char* key : {"sinks", "recent", "forget", "queries", "heads", "prefill", "layers", "pool"})
    if (const Json* value = kv.find(key)) settings[key] = value->word();
  std::vector<int64_t> budgets;
  if (const Json* listed = kv.find("budgets"))
    for (const Json& budget : listed->items()) budgets.push_back(budget.integer());
  try {
    if (!budgets.empty() && int64_t(budgets.size()) != m.layers)
      throw usage_error("\"kv.budgets\" has " + std::to_string(budgets.size()) + " budgets for " + std::to_string(m.layers) + " layers");
    return KVPolicy::make(kv["policy"].string(), kv["budget"].integer(), m.context, settings, budgets);
  } catch (const Error& error) {
    const std::string what = error.what();
    throw bundle_error(std::string(kManifest) + ": " + what.substr(0, what.find('\n')));
  }
}

Manifest manifest_of(const Json& data) {
  const Json &model = data["model"], &tokens = data["tokens"];
  Manifest m;
  m.name = model["name"].string(), m.architecture = model["architecture"].string();
  m.layers = size_of(model, "layers"), m.heads = size_of(model, "heads"), m.kv_heads = size_of(model, "kv_heads");
  m.head_dim = size_of(model, "head_dim"), m.vocabulary = size_of(model, "vocabulary"), m.context = size_of(model, "context");
  const auto token = [&](int64_t id) {
    if (id < 0 || id >= m.vocabulary)
      throw JsonError("\"tokens\" names id " + std::to_string(id) + "; the vocabulary has " + std::to_string(m.vocabulary));
    return id;
  };
  if (const Json* bos = tokens.find("bos")) m.bos = token(bos->integer());
  if (const Json* eos = tokens.find("eos")) m.eos = token(eos->integer());
  m.add_bos = tokens["add_bos"].boolean();
  for (const Json& stop : tokens["stop"].items()) m.stops.push_back(token(stop.integer()));
  m.kv = default_policy(data["kv"], m);
  if (const Json* bits = data["kv"].find("bits")) {
    if (bits->integer() != 8 && bits->integer() != 16)
      throw JsonError("\"kv.bits\" is " + std::to_string(bits->integer()) + "; this edgellm runs 16 and 8");
    m.kv_int8 = bits->integer() == 8;
  }
  m.engine = engine_facts(data);
  for (const Json& matrix : data["matrices"].items())
    if (const Json* offset = matrix.find("offset"))
      m.matrices.push_back({matrix["name"].string(), bytes_of(*offset), bytes_of(matrix["bytes"])});
  m.tables = data["files"].find(kTables) != nullptr;
  return m;
}

}  // namespace

Manifest read_manifest(const std::string& folder, bool verify) {
  check_place(folder);
  const MappedFile file(folder, kManifest);
  Json data;
  try {
    data = Json::parse(file.bytes());
    check_version(data, "schema", kSchema);
    check_version(data, "operators", kOperators);
    std::string canonical;
    data.canonical(canonical, "checksum");
    if (sha256(canonical) != data["checksum"].string()) throw edited();
  } catch (const JsonError&) {
    throw edited();
  }
  try {
    const Json* graph = data.find("graph");
    if (graph && graph->string() != "edgellm")
      throw bundle_error("this bundle's graph is \"" + graph->string() + "\"'s; the C++ library runs edgellm's own only",
                         "Run it in Python: edgellm generate " + folder);
    const Manifest manifest = manifest_of(data);
    check_files(folder, data["files"], verify);
    return manifest;
  } catch (const JsonError& error) {
    throw bundle_error(std::string(kManifest) + ": " + error.what());
  }
}

}  // namespace edgellm
