# find_package(edgellm) of an installed wheel: the target edgellm::edgellm. This file is edgellm/kernels/lib/cmake/edgellm/.
if(NOT TARGET edgellm::edgellm)
  get_filename_component(_edgellm "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
  add_library(edgellm::edgellm SHARED IMPORTED)
  set_target_properties(edgellm::edgellm PROPERTIES
    IMPORTED_LOCATION "${_edgellm}/libedgellm.so"
    INTERFACE_INCLUDE_DIRECTORIES "${_edgellm}/include")
  unset(_edgellm)
endif()
