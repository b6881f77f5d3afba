# Helpers that keep each folder's CMakeLists.txt a readable list of files and dependencies.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)
endif()
# -O3 for the shipped build; assertions of our own (LS_CHECK) stay on in every build type.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O3 -g1 -DNDEBUG")
if(LONGSTRIDE_SANITIZE)
  # Sanitizers see the same code at -O1, and the kernels compile in seconds instead of minutes.
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1 -DNDEBUG")
endif()

find_program(LONGSTRIDE_CCACHE ccache)
if(LONGSTRIDE_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${LONGSTRIDE_CCACHE}")
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${LONGSTRIDE_CCACHE}")
endif()
find_program(LONGSTRIDE_MOLD NAMES mold)
if(LONGSTRIDE_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

add_library(longstride_flags INTERFACE)
target_include_directories(longstride_flags INTERFACE "${PROJECT_SOURCE_DIR}")
target_compile_options(longstride_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -Wnon-virtual-dtor -Woverloaded-virtual>
  $<$<COMPILE_LANGUAGE:CXX>:-fstack-protector-strong>)
if(LONGSTRIDE_WERROR)
  target_compile_options(longstride_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(LONGSTRIDE_SANITIZE)
  target_compile_options(longstride_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${LONGSTRIDE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all>)
  target_link_options(longstride_flags INTERFACE -fsanitize=${LONGSTRIDE_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # What the sanitizers insert makes gcc see uninitialised values where there are none.
    target_compile_options(longstride_flags INTERFACE
      $<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized>)
  endif()
  if(LONGSTRIDE_SANITIZE MATCHES "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # gcc warns that it does not model the fences that Asio uses.
    target_compile_options(longstride_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-tsan>)
  endif()
endif()
if(LONGSTRIDE_FUZZ)
  target_compile_options(longstride_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link>)
endif()

# ls_uses_protobuf(<files>...): sources that include protobuf's headers. These lay out their types
# differently under ThreadSanitizer, which the packaged library was built without.
function(ls_uses_protobuf)
  if(LONGSTRIDE_SANITIZE MATCHES "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS -U__SANITIZE_THREAD__)
  endif()
endfunction()

# ls_library(<name> SRCS ... DEPS ... [PRIVATE_DEPS ...])
function(ls_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SRCS})
  target_link_libraries(${name} PUBLIC longstride_flags ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS})
endfunction()

# Where the tests look for their data. "." lets them run from a copy of the tree elsewhere, with its
# root as the working directory.
set(LONGSTRIDE_TEST_ROOT "${PROJECT_SOURCE_DIR}" CACHE STRING "Root of the tests' data")

# ls_test(<name> SRCS ... DEPS ... [LABELS ...] [TIMEOUT seconds]): one GoogleTest binary per folder.
function(ls_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE longstride_flags ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE LONGSTRIDE_SOURCE_DIR="${LONGSTRIDE_TEST_ROOT}")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()
