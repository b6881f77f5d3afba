# Writes OUTPUT, a C++ file that holds the profiles in the folder SOURCE. Run by the build.
file(GLOB files "${SOURCE}/*.json")
list(SORT files)
set(entries "")
foreach(file ${files})
  get_filename_component(name "${file}" NAME_WE)
  file(READ "${file}" text)
  string(APPEND entries "    {\"${name}\", R\"LONGSTRIDE(${text})LONGSTRIDE\"},\n")
endforeach()
file(WRITE "${OUTPUT}.new" "#include \"config/profiles.h\"

namespace longstride {

const std::vector<Profile>& Profiles() {
  static const auto* profiles = new std::vector<Profile>{
${entries}  };
  return *profiles;
}

}  // namespace longstride
")
file(COPY_FILE "${OUTPUT}.new" "${OUTPUT}" ONLY_IF_DIFFERENT)
file(REMOVE "${OUTPUT}.new")
